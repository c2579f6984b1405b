//! An owner: the production state machine, with its pending inputs.

use std::fmt::Write as _;

use domain::State;

use super::clients::{WISHES, Wish};
use super::history::{History, digest_of};
use crate::partition::tests::{NOW, PARTITION, PARTITIONS, Recorder, WINDOW, end_of, index, product};
use crate::partition::{HaltError, NoOffset, Partition, ReadTo, Role, Ticket};

/// A delivery report; `offset` is `None` if the record got none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct DeliveryReport {
    generation: u16,
    seq: u64,
    offset: Option<i64>,
}

impl DeliveryReport {
    pub(super) fn none(Ticket { generation, seq }: Ticket) -> Self {
        Self { generation, seq, offset: None }
    }

    pub(super) fn at(self, offset: i64) -> Self {
        Self { offset: Some(offset), ..self }
    }
}

#[derive(Clone)]
pub(super) struct Owner {
    pub(super) partition: Partition<usize>,
    pub(super) life: u32,
    /// Last nonce used for a claim, in all lives.
    pub(super) nonces: u64,
    /// Set if the producer refuses the next record.
    pub(super) refuses: bool,
    /// Range of the requested read.
    pub(super) reading: Option<(i64, ReadTo)>,
    /// Delivery reports in arrival order.
    pub(super) reports: Vec<DeliveryReport>,
    /// Digest of everything but the reports, once computed.
    pub(super) digest: Option<u64>,
}

impl Owner {
    /// Creates an owner. Of an earlier life only the nonces remain, so that none is used twice.
    pub(super) fn new(it: usize, life: u32, nonces: u64) -> Self {
        let partition = Partition::new(PARTITION, PARTITIONS, format!("http://owner-{it}"), WINDOW);
        let nonces = nonces.max(first_nonce(it));
        Self { partition, life, nonces, refuses: false, reading: None, reports: vec![], digest: None }
    }

    pub(super) fn is_fresh(&self, it: usize) -> bool {
        self.partition.role() == Role::Idle && (self.life, self.nonces) == (0, first_nonce(it))
    }

    pub(super) fn hear(&mut self, report: usize, out: &mut Recorder<usize>) {
        let DeliveryReport { generation, seq, offset } = self.reports.remove(report);
        self.partition.delivered(Ticket { generation, seq }, offset.ok_or(NoOffset), out);
    }

    /// Carries out the requested read, up to the current end of the log. A machine that reads to the end reacts only to
    /// a release meanwhile, so an earlier read would not be a different run.
    pub(super) fn read(&mut self, log: &History, out: &mut Recorder<usize>) -> Result<(), HaltError> {
        let Some((from, to)) = self.reading.take() else { return Ok(()) };
        for offset in from..end_of(to, log.len()) {
            self.partition.record(offset, log.value(index(offset)), out)?;
        }
        self.partition.read_ended(NOW, out)
    }

    pub(super) fn let_go(&mut self, log: &History, out: &mut Recorder<usize>) -> Result<(), HaltError> {
        if let Some((from, to)) = self.reading {
            let end = end_of(to, log.len());
            let half = from + (end - from) / 2;
            for offset in from..half {
                self.partition.record(offset, log.value(index(offset)), out)?;
            }
            self.reading = Some((half, ReadTo::Offset(end)));
        }
        self.partition.let_go();
        Ok(())
    }

    /// Returns the digest; owners with the same digest behave the same from here on.
    ///
    /// The machine's memory has two maps with random iteration order; the entries of the one product and of the
    /// commands' keys are all they hold. In the model, no time passes, so no key expires, no clock goes wrong and no
    /// fence is delayed, and nothing is in the store.
    pub(super) fn digested(&self) -> u64 {
        if let Some(digest) = self.digest {
            return digest;
        }
        let Self { partition, life, nonces, refuses, reading, reports: _, digest: _ } = self;
        // Destructured in full: a new field requires a decision whether owners may differ in it alone.
        let Partition {
            partition: _,
            url: _,
            generation,
            claims,
            phase,
            memory,
            pending,
            parked: _,
            checkpoint: _,
            full: _,
            asks_names: _,
            fences,
            leaving,
            clock: _,
            buffer: _,
        } = partition;
        let (reader, last_at, product) = (memory.reader, memory.last_at, product("p"));
        let position = memory.aggregates.version(&product);
        let mut text = String::with_capacity(2048);
        let written =
            write!(text, "{life} {nonces} {refuses} {reading:?} {generation} {claims:?} {phase:?} {pending:?} ")
                .and_then(|()| write!(text, "{} {leaving} {reader:?} {last_at:?} {position:?} ", fences.seq))
                .and_then(|()| match memory.aggregates.state(&product) {
                    Some(State::Product(state)) => write!(text, "{state:?}"),
                    _ => Ok(()),
                })
                .and_then(|()| {
                    WISHES
                        .iter()
                        .try_for_each(|Wish { key, .. }| write!(text, "{:?}", memory.repeats.get(&product, key)))
                });
        written.expect("writing to a string cannot fail");
        digest_of(&text)
    }
}

fn first_nonce(it: usize) -> u64 {
    1000 * it as u64
}
