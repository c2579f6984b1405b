//! A log recorded by an earlier build, with two successive owners and a stray record between them. Every later build
//! must read it and arrive at the same states.

use std::collections::BTreeMap;

use domain::{State, evolve};

use super::super::{Passed, Reader, Verdict};
use crate::aggregate::AggregateId;
use crate::record::{Epoch, Record};
use crate::snapshots;

/// One partition, with one record per line.
const LOG: &str = include_str!("../../../golden/log.st1");

#[test]
fn the_golden_log_reads_as_it_did_when_it_was_written() {
    let mut reader = Reader::START;
    let mut verdicts = Vec::new();
    let mut aggregates: BTreeMap<String, (State, u64)> = BTreeMap::new();
    for (offset, line) in (0..).zip(LOG.lines()) {
        let record = Record::decode(line.as_bytes()).unwrap();
        verdicts.push(reader.read(offset, record.as_ref()).unwrap());
        if let (Some(Verdict::Counts), Some(Record::Commit(commit))) = (verdicts.last(), record) {
            let name = AggregateId::parse(&commit.aggregate).unwrap();
            let initial = || (State::initial(name.aggregate()), 0);
            let (state, version) = aggregates.entry(commit.aggregate.to_string()).or_insert_with(initial);
            for event in &commit.events {
                *state = evolve(std::mem::replace(state, State::initial(name.aggregate())), &event.upcast());
            }
            *version += commit.events.len() as u64;
            assert_eq!(*version, commit.version);
        }
    }
    let first = Epoch { claim: 0, nonce: 0xA1F5_C699_06A3_56F5 };
    let second = Epoch { claim: 7, nonce: 0xAE91_F82C_0F71_66E3 };
    let mut expected = vec![Verdict::Counts; 12];
    expected[0] = Verdict::Claimed(first);
    expected[5] = Verdict::PassedOver(Passed::OtherEpoch);
    expected[7] = Verdict::Claimed(second);
    assert_eq!(verdicts, expected);
    assert_eq!(reader, Reader::behind(second, 4, 11));

    let State::Product(domain::product::State::Discontinued(product)) = &aggregates["product/cd-1"].0 else {
        panic!("{aggregates:?}")
    };
    assert_eq!((product.available, product.price_cents, product.reservations.len()), (11, 999, 1));
    assert_eq!(aggregates["product/cd-1"].1, 5);
    assert!(matches!(&aggregates["order/o-1"], (State::Order(domain::order::State::Cancelled(_)), 2)));
    for (state, _) in aggregates.values() {
        let kept = snapshots::encode(state).unwrap();
        assert_eq!(snapshots::decode(snapshots::FORM, &kept).as_ref(), Some(state));
    }
}
