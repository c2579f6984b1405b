//! The journal: every record verbatim, in runs of one partition and segment, and the idempotency keys of commands.

use std::collections::BTreeMap;
use std::error::Error;

use bytes::{Bytes, BytesMut};
use postgres_types::{IsNull, ToSql, Type, to_sql_checked};
use schemas::idempotency::IdempotencyKey;
use schemas::journal::SEGMENT_OFFSETS;
use schemas::record::Commit;
use schemas::tables::{lies_beside_record, name_hash, repeat_key};
use uuid::Uuid;

/// Rows to append to the journal.
#[derive(Debug, Default)]
pub(crate) struct JournalRows {
    /// Records by partition and segment.
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
    pub(crate) records: Vec<Stored>,
    names: Vec<i64>,
    keys: Vec<Option<Uuid>>,
    last_at_ms: i64,
}

/// A record's bytes, which share the allocation of its batch.
#[derive(Debug)]
pub(crate) struct Stored(pub(crate) Bytes);

impl ToSql for Stored {
    fn to_sql(&self, r#type: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.0.as_ref().to_sql(r#type, out)
    }

    fn accepts(r#type: &Type) -> bool {
        <&[u8] as ToSql>::accepts(r#type)
    }

    to_sql_checked!();
}

/// Columns of the table `repeats`, with one row per command.
#[derive(Debug, Default)]
pub(crate) struct RepeatRows {
    pub(crate) keys: Vec<Uuid>,
    pub(crate) at_ms: Vec<i64>,
    pub(crate) partitions: Vec<i32>,
    pub(crate) offsets: Vec<i64>,
}

/// Appends the named columns of `$later` to those of `$to`.
macro_rules! append {
    ($to:ident, $later:ident, $($column:ident),+) => {
        $($to.$column.append(&mut $later.$column);)+
    };
}

impl RepeatRows {
    fn push(&mut self, key: Uuid, at_ms: u64, partition: u32, offset: i64) {
        self.keys.push(key);
        self.at_ms.push(at_ms.cast_signed());
        self.partitions.push(partition.cast_signed());
        self.offsets.push(offset);
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
            names: Vec::new(),
            keys: Vec::new(),
            last_at_ms: 0,
        }
    }

    /// Adds a record. `commit` is its content if it counts; `key` is the hash of its idempotency key if it is stored
    /// beside the record.
    fn push(&mut self, offset: i64, record: Bytes, commit: Option<&Commit<'_>>, key: Option<Uuid>) {
        self.offsets.push(offset);
        self.aggregates.push(commit.map(|commit| commit.aggregate.to_string()));
        self.versions.push(commit.map_or(0, |commit| commit.version.cast_signed()));
        self.events.push(commit.map_or(0, |commit| i32::try_from(commit.events.len()).unwrap_or(i32::MAX)));
        self.records.push(Stored(record));
        self.names.push(commit.map_or(0, |commit| name_hash(&commit.aggregate)));
        self.keys.push(key);
        self.last_at_ms = commit.map_or(self.last_at_ms, |commit| commit.at_ms.cast_signed());
    }
}

impl JournalRows {
    pub(crate) fn append(&mut self, later: Self) {
        for (place, mut later) in later.runs {
            match self.runs.get_mut(&place) {
                Some(run) => {
                    append!(run, later, offsets, aggregates, versions, events, records, names, keys);
                    run.last_at_ms = run.last_at_ms.max(later.last_at_ms);
                }
                None => drop(self.runs.insert(place, later)),
            }
        }
        let (repeats, mut later) = (&mut self.repeats, later.repeats);
        append!(repeats, later, keys, at_ms, partitions, offsets);
    }

    /// Returns whether there are records of a partition.
    pub(crate) fn has(&self, partition: u32) -> bool {
        self.runs.range((partition, 0)..=(partition, i64::MAX)).next().is_some()
    }

    /// Adds a record. `commit` is its content if it counts.
    pub(crate) fn push(&mut self, partition: u32, offset: i64, value: Bytes, commit: Option<&Commit<'_>>) {
        let segment = offset / SEGMENT_OFFSETS;
        let key = commit.and_then(|commit| {
            let key = key(commit)?;
            let hash = repeat_key(&commit.aggregate, &key);
            if lies_beside_record(&key, commit.at_ms) {
                return Some(hash);
            }
            self.repeats.push(hash, commit.at_ms, partition, offset);
            None
        });
        let run = self.runs.entry((partition, segment)).or_insert_with(|| Run::at(partition, segment, offset));
        run.push(offset, value, commit, key);
    }
}

/// Returns the key under which a client may repeat the command. Commands that events caused are never looked up by key.
fn key(commit: &Commit<'_>) -> Option<IdempotencyKey> {
    if commit.cause.is_some() {
        return None;
    }
    IdempotencyKey::from_bare(&commit.command_id).ok()
}
