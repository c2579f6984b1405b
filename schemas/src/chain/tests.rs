//! Each verdict, doubt and settlement by example; [`simulation`] has the whole.

mod golden_log;
mod simulation;

use super::{ChainError, Doubt, Passed, Reader, Settled, Verdict, Writer};
use crate::record::{Claim, Commit, Epoch, Fence, Record};

/// A partition as it lies in Kafka, by offset; `None` is a record that is not ours.
type Log = Vec<Option<Record<'static>>>;

const OURS: Epoch = Epoch { claim: 0, nonce: 1 };

fn claim(nonce: u64) -> Option<Record<'static>> {
    Some(Record::Claim(Claim { nonce, url: "http://owner".into(), partitions: None }))
}

fn fence(epoch: Epoch, seq: u64) -> Option<Record<'static>> {
    Some(Record::Fence(Fence { epoch, seq }))
}

fn commit(epoch: Epoch, seq: u64, command_id: String) -> Option<Record<'static>> {
    Some(Record::Commit(Commit {
        epoch,
        seq,
        command_id: command_id.into(),
        at_ms: 0,
        aggregate: "product/p".into(),
        version: 1,
        events: vec![],
        fingerprint: 0,
        cause: None,
        trace: None,
    }))
}

fn int(index: usize) -> i64 {
    i64::try_from(index).unwrap()
}

/// Reads on from `reader` up to, and without, offset `until`; returns what was said about each record.
fn read_on(reader: &mut Reader, log: &Log, until: i64) -> Vec<Verdict> {
    (reader.next_offset..until.min(int(log.len())))
        .map(|offset| reader.read(offset, log[usize::try_from(offset).unwrap()].as_ref()).unwrap())
        .collect()
}

fn read_whole(log: &Log) -> (Reader, Vec<Verdict>) {
    let mut reader = Reader::START;
    let verdicts = read_on(&mut reader, log, i64::MAX);
    (reader, verdicts)
}

// Readers, by example.

#[test]
fn a_claim_begins_an_epoch_and_its_records_count_in_order() {
    let later = Epoch { claim: 3, nonce: 9 };
    let log = vec![claim(1), fence(OURS, 1), fence(OURS, 2), claim(9), fence(later, 1)];
    let (reader, verdicts) = read_whole(&log);
    let begun = [Verdict::Claimed(OURS), Verdict::Counts, Verdict::Counts, Verdict::Claimed(later), Verdict::Counts];
    assert_eq!(verdicts, begun);
    assert_eq!(reader, Reader::behind(later, 1, 4));
}

#[test]
fn what_is_not_ours_is_passed_over_and_moves_only_the_offset() {
    let (reader, verdicts) = read_whole(&vec![claim(1), None, fence(OURS, 1)]);
    assert_eq!(verdicts[1..], [Verdict::PassedOver(Passed::Foreign), Verdict::Counts]);
    assert_eq!(reader.last_counted, 2);
}

#[test]
fn a_record_of_another_epoch_is_passed_over() {
    let recreated = Epoch { nonce: 2, ..OURS };
    let never = Epoch { claim: 7, ..OURS };
    let log = vec![claim(1), fence(recreated, 1), fence(never, 1), claim(9), fence(OURS, 1)];
    let (_, verdicts) = read_whole(&log);
    for offset in [1, 2, 4] {
        assert_eq!(verdicts[offset], Verdict::PassedOver(Passed::OtherEpoch), "offset {offset}");
    }
}

#[test]
fn a_record_out_of_sequence_is_passed_over() {
    let log = vec![claim(1), fence(OURS, 2), fence(OURS, 0), fence(OURS, 1), fence(OURS, 1), fence(OURS, 2)];
    let (_, verdicts) = read_whole(&log);
    let passed = Verdict::PassedOver(Passed::OutOfSequence);
    assert_eq!(verdicts[1..], [passed, passed, Verdict::Counts, passed, Verdict::Counts]);
}

#[test]
fn a_gap_halts_the_reader_where_it_stands() {
    let mut reader = Reader::behind(OURS, 3, 5);
    for found in [7, 5, 0] {
        assert_eq!(reader.read(found, None), Err(ChainError::Gap { expected: 6, found }));
    }
    assert_eq!(reader, Reader::behind(OURS, 3, 5));
}

#[test]
fn a_log_that_does_not_begin_with_a_claim_is_not_read() {
    for first in [None, fence(OURS, 1), commit(OURS, 1, "a".into())] {
        let mut reader = Reader::START;
        assert_eq!(reader.read(0, first.as_ref()), Err(ChainError::NoFirstClaim));
        assert_eq!(reader, Reader::START);
    }
}

// Writers, by example.

/// A writer that sent `sent` records under the claim at offset 0.
fn writer(sent: u64) -> Writer {
    let mut writer = Writer::new(OURS);
    for seq in 1..=sent {
        assert_eq!((writer.next_seq(), writer.sent()), (seq, seq));
    }
    writer
}

/// Looks as far as the doubt says.
fn look(writer: &mut Writer, log: &Log, doubt: Doubt) -> Result<Settled, Doubt> {
    let mut reader = writer.reader();
    read_on(&mut reader, log, doubt.offset + 1);
    writer.settle(&reader)
}

#[test]
fn a_number_is_used_up_only_by_what_was_sent() {
    let mut writer = writer(1);
    assert_eq!((writer.next_seq(), writer.next_seq(), writer.last_sent()), (2, 2, 1));
    assert_eq!((writer.sent(), writer.last_sent()), (2, 2));
}

#[test]
fn a_report_acknowledges_only_when_all_before_it_came() {
    let mut writer = writer(3);
    assert_eq!((writer.delivered(3, 3), writer.acknowledged()), (Ok(()), 0));
    assert_eq!((writer.delivered(1, 1), writer.acknowledged()), (Ok(()), 1));
    assert_eq!((writer.delivered(2, 2), writer.acknowledged()), (Ok(()), 3));
    assert_eq!((writer.offset_of(3), writer.reader()), (3, Reader::behind(OURS, 3, 3)));
}

#[test]
fn doubt_names_the_highest_offset_that_was_reported() {
    let mut writer = writer(3);
    assert_eq!(writer.delivered(3, 8), Ok(()));
    assert_eq!(writer.delivered(2, 3), Ok(()));
    assert_eq!(writer.delivered(1, 2), Err(Doubt { offset: 8 }));
    assert_eq!(writer.acknowledged(), 0);
}

#[test]
fn records_of_nobody_move_the_base_and_the_epoch_continues() {
    let mut writer = writer(3);
    let log = vec![claim(1), None, fence(OURS, 1), fence(OURS, 2), fence(OURS, 3)];
    let doubt = writer.delivered(1, 2).unwrap_err();
    assert_eq!(look(&mut writer, &log, doubt), Ok(Settled::Continues));
    assert_eq!((writer.acknowledged(), writer.offset_of(1)), (1, 2));
    assert_eq!((writer.delivered(2, 3), writer.delivered(3, 4)), (Ok(()), Ok(())));
    assert_eq!(writer.acknowledged(), 3);
}

#[test]
fn a_report_that_comes_during_the_look_may_raise_a_doubt_of_its_own() {
    let mut writer = writer(2);
    let log = vec![claim(1), None, fence(OURS, 1), None, fence(OURS, 2)];
    let first = writer.delivered(1, 2).unwrap_err();
    let _ = writer.delivered(2, 4);
    assert_eq!(look(&mut writer, &log, first), Err(Doubt { offset: 4 }));
    assert_eq!(look(&mut writer, &log, Doubt { offset: 4 }), Ok(Settled::Continues));
    assert_eq!(writer.acknowledged(), 2);
}

#[test]
fn a_foreign_claim_deposes_and_acknowledges_nothing_more() {
    let mut writer = writer(2);
    let theirs = Epoch { claim: 1, nonce: 9 };
    let log = vec![claim(1), claim(9), fence(theirs, 1), fence(theirs, 2), fence(OURS, 1)];
    let doubt = writer.delivered(1, 4).unwrap_err();
    assert_eq!(look(&mut writer, &log, doubt), Ok(Settled::Deposed));
    assert_eq!(writer.acknowledged(), 0);
}

#[test]
fn a_lost_record_breaks_the_epoch_for_all_behind_it() {
    let mut writer = writer(3);
    let log = vec![claim(1), fence(OURS, 1), fence(OURS, 3)];
    assert_eq!(writer.delivered(3, 2), Ok(()));
    assert_eq!(look(&mut writer, &log, Doubt { offset: 2 }), Ok(Settled::Broken));
    assert_eq!(writer.acknowledged(), 1);
}
