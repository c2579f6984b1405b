//! One owner: the machine that runs, and what it waits for.

use std::fmt::Write as _;

use domain::State;

use super::clients::{WISHES, Wish};
use super::history::{History, digest_of};
use crate::partition::tests::{NOW, PARTITION, PARTITIONS, Recorder, WINDOW, end_of, index, product};
use crate::partition::{HaltError, NoOffset, Partition, ReadTo, Role, Ticket};

/// `offset`: `None` where there was none.
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
    /// The last that it used for a claim, in all lives.
    pub(super) nonces: u64,
    /// Its producer refuses the next record.
    pub(super) refuses: bool,
    /// From where to where.
    pub(super) reading: Option<(i64, ReadTo)>,
    /// In the order in which they came.
    pub(super) reports: Vec<DeliveryReport>,
    /// Of all of it but the reports, once it was asked for.
    pub(super) digest: Option<u64>,
}

impl Owner {
    /// Nothing of an earlier life is left but the nonces, that none is used twice.
    pub(super) fn new(it: usize, life: u32, nonces: u64) -> Self {
        let partition = Partition::new((PARTITION, PARTITIONS), format!("http://owner-{it}"), WINDOW);
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

    /// The end of the log is where it is now. Only to let go means anything to a machine that reads to there, so that
    /// to have read it a while ago is no other course.
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

    /// Owners of the same digest do the same from here on.
    ///
    /// In memory the machine keeps two maps whose order is chance; what they hold of the one product and of the wishes'
    /// keys is all they hold. No time passes here, so that keys do not grow old, no clock goes wrong, no crowd comes
    /// that a fence would wait for, and nothing is kept outside of memory.
    pub(super) fn digested(&self) -> u64 {
        if let Some(digest) = self.digest {
            return digest;
        }
        let Self { partition, life, nonces, refuses, reading, reports: _, digest: _ } = self;
        // Who adds a field says here whether owners may differ in it alone.
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
        written.expect("a string takes everything");
        digest_of(&text)
    }
}

fn first_nonce(it: usize) -> u64 {
    1000 * it as u64
}
