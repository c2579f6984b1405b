//! State built from a partition's records: the aggregates, and the keys that took effect recently.

use std::time::Duration;

use domain::TimeMs;
use schemas::chain::{Reader, Verdict};
use schemas::events::WireEvent;
use schemas::record::{Commit, Record};

use super::aggregates::Aggregates;
use super::repeats::{Repeat, Repeats};
use super::tails::Unfolded;
use super::{Checkpoint, HaltError};

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Replay {
    /// Position in the log; an owner's state is ahead of it by its own records.
    pub(super) reader: Reader,
    /// Set once the last record that the checkpoint counted was found at its offset.
    recognized: bool,
    pub(super) aggregates: Aggregates,
    pub(super) repeats: Repeats,
    /// Time of the last commit.
    pub(super) last_at: TimeMs,
    /// Time by this instance's clock, as of the current turn.
    pub(super) now: TimeMs,
    /// Number of partitions of the topic.
    pub(super) partitions: u32,
}

impl Replay {
    pub(super) fn new(window: Duration, partitions: u32) -> Self {
        Self {
            reader: Reader::START,
            recognized: true,
            aggregates: Aggregates::default(),
            repeats: Repeats::new(window),
            last_at: TimeMs(0),
            now: TimeMs(u64::MAX),
            partitions,
        }
    }

    /// Discards the state, to be rebuilt from the checkpoint or from the beginning of the log.
    pub(super) fn restart(&mut self, checkpoint: Option<&Checkpoint>) {
        let start = checkpoint.filter(|checkpoint| checkpoint.reader.last_counted >= 0);
        let end = self.reader.next_offset;
        self.reader = start.map_or(Reader::START, |start| start.reader);
        self.recognized = start.is_none();
        self.aggregates.restart(end, self.reader.next_offset);
        self.repeats.restart(start.map(|start| start.max_key));
        self.last_at = start.map_or(TimeMs(0), |start| start.last_at);
    }

    /// Returns the offset to read from. The last record that the checkpoint counted is read again, to verify it.
    pub(super) fn from(&self) -> i64 {
        if self.recognized { self.reader.next_offset } else { self.reader.last_counted }
    }

    /// Verifies that the records read continue the history of the checkpoint.
    pub(super) fn check_recognized(&self) -> Result<(), HaltError> {
        let offset = self.reader.last_counted;
        if self.recognized { Ok(()) } else { Err(HaltError::OtherHistory { offset }) }
    }

    /// Returns the offset that stored data must reach to complete the state in memory.
    pub(super) fn floor(&self) -> i64 {
        self.aggregates.floor().max(self.repeats.floor())
    }

    /// Applies the next record of the log if it counts. `size` is its length in bytes.
    pub(super) fn read(&mut self, offset: i64, record: Option<&Record<'_>>, size: usize) -> Result<Verdict, HaltError> {
        if let Some(Record::Claim(claim)) = record {
            claim.check_partitions(self.partitions).map_err(|source| HaltError::Partitions { offset, source })?;
        }
        if !self.recognized {
            if offset == self.reader.last_counted && !self.reader.recognizes(record) {
                return Err(HaltError::OtherHistory { offset });
            }
            // The records between it and the checkpoint did not count.
            self.recognized = offset + 1 >= self.reader.next_offset;
            return Ok(Verdict::Counts);
        }
        let verdict = self.reader.read(offset, record)?;
        if let (Verdict::Counts, Some(Record::Commit(commit))) = (verdict, record) {
            self.fold(offset, commit, size)?;
        }
        Ok(verdict)
    }

    fn fold(&mut self, offset: i64, commit: &Commit<'_>, size: usize) -> Result<(), HaltError> {
        let aggregate = self
            .aggregates
            .name(&commit.aggregate)
            .ok_or_else(|| HaltError::Aggregate { offset, aggregate: commit.aggregate.to_string() })?;
        let events: Vec<_> = commit.events.iter().map(WireEvent::upcast).collect();
        let read = Unfolded { events, version: commit.version, offset, at: TimeMs(commit.at_ms) };
        self.aggregates.read(&aggregate, read, size);
        self.last_at = self.last_at.max(TimeMs(commit.at_ms));
        // Keys expire as they did for the owner before it decided: a key that took effect again after its window starts
        // a new one. A log that is ahead of the clock does not end a window early.
        self.repeats.expire(self.last_at.min(self.now));
        // See `ParsedRequest::remembered_key`.
        if commit.cause.is_none() {
            let events = commit.events.iter().map(WireEvent::name).collect();
            let repeat = Repeat { offset, fingerprint: commit.fingerprint, version: commit.version, events };
            self.repeats.insert(&aggregate, &commit.command_id, TimeMs(commit.at_ms), repeat);
        }
        Ok(())
    }

    pub(super) fn move_positions(&mut self, proven: i64, shift: i64) {
        self.aggregates.move_positions(proven, shift);
        self.repeats.move_positions(proven, shift);
    }
}
