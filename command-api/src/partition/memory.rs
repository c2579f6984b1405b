//! What a partition's records add up to: the aggregates, and the keys that took effect lately.

use std::time::Duration;

use domain::TimeMs;
use schemas::chain::{Reader, Verdict};
use schemas::events::WireEvent;
use schemas::record::{Commit, Record};

use super::HaltError;
use super::aggregates::Aggregates;
use super::repeats::{Repeat, Repeats};

#[derive(Debug)]
pub(super) struct Memory {
    /// Where it stands in the log; an owner's is ahead of that by its own records.
    pub(super) reader: Reader,
    pub(super) aggregates: Aggregates,
    pub(super) repeats: Repeats,
    /// Of the last commit.
    pub(super) last_at: TimeMs,
}

impl Memory {
    pub(super) fn new(window: Duration) -> Self {
        Self {
            reader: Reader::START,
            aggregates: Aggregates::default(),
            repeats: Repeats::new(window),
            last_at: TimeMs(0),
        }
    }

    pub(super) fn clear(&mut self) {
        self.reader = Reader::START;
        self.aggregates = Aggregates::default();
        self.repeats.clear();
        self.last_at = TimeMs(0);
    }

    /// Takes the next record of the log in, if it counts.
    pub(super) fn read(&mut self, offset: i64, record: Option<&Record<'_>>) -> Result<Verdict, HaltError> {
        let verdict = self.reader.read(offset, record)?;
        if let (Verdict::Counts, Some(Record::Commit(commit))) = (verdict, record) {
            self.fold(offset, commit)?;
        }
        Ok(verdict)
    }

    fn fold(&mut self, offset: i64, commit: &Commit<'_>) -> Result<(), HaltError> {
        let aggregate = self
            .aggregates
            .name(&commit.aggregate)
            .ok_or_else(|| HaltError::Aggregate { offset, aggregate: commit.aggregate.to_string() })?;
        let events: Vec<_> = commit.events.iter().map(WireEvent::upcast).collect();
        self.aggregates.apply(&aggregate, &events, commit.version, offset, TimeMs(commit.at_ms));
        self.last_at = self.last_at.max(TimeMs(commit.at_ms));
        // As its owner did before it decided: a key that took effect again after its window is kept for another.
        self.repeats.expire(self.last_at);
        let events = commit.events.iter().map(WireEvent::name).collect();
        let repeat = Repeat { offset, fingerprint: commit.fingerprint, version: commit.version, events };
        self.repeats.insert(&aggregate, &commit.command_id, TimeMs(commit.at_ms), repeat);
        Ok(())
    }

    pub(super) fn move_positions(&mut self, proven: i64, shift: i64) {
        self.aggregates.move_positions(proven, shift);
        self.repeats.move_positions(proven, shift);
    }
}
