//! The journal: every record as it is, in runs of one partition and segment; and, for a while, every command by its key.

use std::collections::BTreeMap;

use postgres_types::ToSql;
use schemas::idempotency::IdempotencyKey;
use schemas::journal::SEGMENT_OFFSETS;
use schemas::record::Commit;
use schemas::tables::repeat_key;
use uuid::Uuid;

/// What is added to the journal.
#[derive(Debug, Default)]
pub(crate) struct JournalRows {
    /// By partition and segment.
    pub(crate) runs: BTreeMap<(u32, i64), Run>,
    pub(crate) repeats: RepeatRows,
}

/// A row of the table `journal_tail`.
#[derive(Debug, ToSql)]
#[postgres(name = "journal_tail")]
pub(crate) struct Run {
    partition: i32,
    segment: i64,
    first_offset: i64,
    offsets: Vec<i64>,
    pub(crate) aggregates: Vec<Option<String>>,
    pub(crate) versions: Vec<i64>,
    events: Vec<i32>,
    pub(crate) records: Vec<Vec<u8>>,
}

/// Columns of the keys that took effect, a row a command.
#[derive(Debug, Default)]
pub(crate) struct RepeatRows {
    pub(crate) keys: Vec<Uuid>,
    pub(crate) at_ms: Vec<i64>,
    pub(crate) partitions: Vec<i32>,
    pub(crate) offsets: Vec<i64>,
    pub(crate) fingerprints: Vec<i64>,
    pub(crate) versions: Vec<i64>,
    pub(crate) events: Vec<i16>,
}

/// Appends each of the named columns of the one to those of the other.
macro_rules! append {
    ($to:ident, $later:ident, $($column:ident),+) => {
        $($to.$column.append(&mut $later.$column);)+
    };
}

impl RepeatRows {
    /// What an event caused is never asked for by its key.
    fn push(&mut self, partition: u32, offset: i64, commit: &Commit<'_>) {
        if commit.cause.is_some() {
            return;
        }
        let Ok(key) = IdempotencyKey::from_bare(&commit.command_id) else { return };
        self.keys.push(repeat_key(&commit.aggregate, &key));
        self.at_ms.push(commit.at_ms.cast_signed());
        self.partitions.push(partition.cast_signed());
        self.offsets.push(offset);
        self.fingerprints.push(commit.fingerprint.cast_signed());
        self.versions.push(commit.version.cast_signed());
        self.events.push(i16::try_from(commit.events.len()).unwrap_or(i16::MAX));
    }
}

impl Run {
    fn at(partition: u32, segment: i64, first_offset: i64) -> Self {
        Self {
            partition: partition.cast_signed(),
            segment,
            first_offset,
            offsets: Vec::new(),
            aggregates: Vec::new(),
            versions: Vec::new(),
            events: Vec::new(),
            records: Vec::new(),
        }
    }
}

impl JournalRows {
    pub(crate) fn append(&mut self, later: Self) {
        for (place, mut later) in later.runs {
            match self.runs.get_mut(&place) {
                Some(run) => {
                    append!(run, later, offsets, aggregates, versions, events, records);
                }
                None => drop(self.runs.insert(place, later)),
            }
        }
        let (repeats, mut later) = (&mut self.repeats, later.repeats);
        append!(repeats, later, keys, at_ms, partitions, offsets, fingerprints, versions, events);
    }

    /// Tells whether anything of a partition is added.
    pub(crate) fn has(&self, partition: u32) -> bool {
        self.runs.range((partition, 0)..=(partition, i64::MAX)).next().is_some()
    }

    /// Adds a record. `commit`: what it says, if it counts.
    pub(crate) fn push(&mut self, (partition, offset, value): (u32, i64, &[u8]), commit: Option<&Commit<'_>>) {
        let segment = offset / SEGMENT_OFFSETS;
        let run = self.runs.entry((partition, segment)).or_insert_with(|| Run::at(partition, segment, offset));
        run.offsets.push(offset);
        run.aggregates.push(commit.map(|commit| commit.aggregate.to_string()));
        run.versions.push(commit.map_or(0, |commit| commit.version.cast_signed()));
        run.events.push(commit.map_or(0, |commit| i32::try_from(commit.events.len()).unwrap_or(i32::MAX)));
        run.records.push(value.to_owned());
        if let Some(commit) = commit {
            self.repeats.push(partition, offset, commit);
        }
    }
}
