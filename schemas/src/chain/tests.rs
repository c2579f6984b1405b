//! Every verdict, doubt and settlement by example; [`simulation`] covers their combinations.

mod golden_log;
mod simulation;

use super::{ChainError, Doubt, Passed, Reader, Settled, Verdict, Writer};
use crate::record::{Claim, Commit, Epoch, Fence, Record};

/// Contents of a Kafka partition, by offset; `None` is a value that this system did not write.
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
        origin: None,
    }))
}

fn int(index: usize) -> i64 {
    i64::try_from(index).unwrap()
}

/// Reads from the position of `reader` up to but excluding offset `until`; returns the verdict on each record.
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

// Readers

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
fn nothing_has_counted_before_the_first_claim() {
    assert_eq!(Reader::START.last_counted, Reader::START.next_offset - 1);
    assert!(!Reader::START.recognizes(claim(1).as_ref()));
}

#[test]
fn a_foreign_value_is_passed_over_and_moves_only_the_offset() {
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
fn nothing_counts_behind_a_claim_that_closes_the_partition() {
    let closed = Epoch { claim: 2, nonce: Epoch::CLOSED };
    let closing = || Some(Record::Claim(Claim::closing("events-48", 12)));
    let log = vec![claim(1), fence(OURS, 1), closing(), fence(OURS, 2), claim(9), fence(closed, 1), closing(), None];
    let (reader, verdicts) = read_whole(&log);
    assert_eq!(verdicts[2], Verdict::Claimed(closed));
    assert_eq!(verdicts[3..7], [Verdict::PassedOver(Passed::OtherEpoch); 4]);
    assert_eq!(verdicts[7], Verdict::PassedOver(Passed::Foreign));
    assert!(reader.is_closed() && reader.recognizes(closing().as_ref()));
    assert_eq!(reader, Reader { next_offset: 8, ..Reader::behind(closed, 0, 2) });
    let mut deposed = writer(1);
    let doubt = deposed.delivered(1, 3).unwrap_err();
    assert_eq!(look(&mut deposed, &log, doubt), Ok(Settled::Deposed));
}

#[test]
fn a_gap_halts_the_reader_at_its_position() {
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

// Writers

/// Returns a writer that sent `sent` records under the claim at offset 0.
fn writer(sent: u64) -> Writer {
    let mut writer = Writer::new(OURS);
    for seq in 1..=sent {
        assert_eq!((writer.next_seq(), writer.sent()), (seq, seq));
    }
    writer
}

/// Reads the log through the offset of the doubt and settles it.
fn look(writer: &mut Writer, log: &Log, doubt: Doubt) -> Result<Settled, Doubt> {
    let mut reader = writer.reader();
    read_on(&mut reader, log, doubt.offset + 1);
    writer.settle(&reader)
}

#[test]
fn a_sequence_number_is_consumed_only_by_a_record_that_was_sent() {
    let mut writer = writer(1);
    assert_eq!((writer.next_seq(), writer.next_seq(), writer.last_sent()), (2, 2, 1));
    assert_eq!((writer.sent(), writer.last_sent()), (2, 2));
}

#[test]
fn a_report_acknowledges_only_once_all_earlier_reports_arrived() {
    let mut writer = writer(3);
    assert_eq!((writer.delivered(3, 3), writer.acknowledged()), (Ok(()), 0));
    assert_eq!((writer.delivered(1, 1), writer.acknowledged()), (Ok(()), 1));
    assert_eq!((writer.delivered(2, 2), writer.acknowledged()), (Ok(()), 3));
    assert_eq!((writer.offset_of(3), writer.reader()), (3, Reader::behind(OURS, 3, 3)));
}

#[test]
fn a_doubt_names_the_highest_reported_offset() {
    let mut writer = writer(3);
    assert_eq!(writer.delivered(3, 8), Ok(()));
    assert_eq!(writer.delivered(2, 3), Ok(()));
    assert_eq!(writer.delivered(1, 2), Err(Doubt { offset: 8 }));
    assert_eq!(writer.acknowledged(), 0);
}

#[test]
fn foreign_values_move_the_base_and_the_epoch_continues() {
    let mut writer = writer(3);
    let log = vec![claim(1), None, fence(OURS, 1), fence(OURS, 2), fence(OURS, 3)];
    let doubt = writer.delivered(1, 2).unwrap_err();
    assert_eq!(look(&mut writer, &log, doubt), Ok(Settled::Continues));
    assert_eq!((writer.acknowledged(), writer.offset_of(1)), (1, 2));
    assert_eq!((writer.delivered(2, 3), writer.delivered(3, 4)), (Ok(()), Ok(())));
    assert_eq!(writer.acknowledged(), 3);
}

#[test]
fn a_report_of_a_record_that_the_log_has_already_acknowledged_changes_nothing() {
    let mut writer = writer(3);
    let log = vec![claim(1), None, fence(OURS, 1), fence(OURS, 2), fence(OURS, 3)];
    let _ = writer.delivered(1, 2).unwrap_err();
    assert_eq!(look(&mut writer, &log, Doubt { offset: 3 }), Ok(Settled::Continues));
    assert_eq!((writer.delivered(2, 3), writer.acknowledged()), (Ok(()), 2));
    assert_eq!((writer.delivered(3, 4), writer.acknowledged()), (Ok(()), 3));
}

#[test]
fn a_report_that_arrives_while_a_doubt_is_settled_may_raise_another_doubt() {
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
