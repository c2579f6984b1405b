//! The journal: every event, by aggregate and version; and, for a while, every command by its key.

use schemas::record::Commit;
use schemas::tables::repeat_key;
use uuid::Uuid;

/// Columns of the journal, a row an event.
#[derive(Debug, Default)]
pub(crate) struct JournalRows {
    pub(crate) aggregates: Vec<String>,
    pub(crate) versions: Vec<i64>,
    pub(crate) types: Vec<&'static str>,
    pub(crate) data: Vec<String>,
    pub(crate) at_ms: Vec<i64>,
    pub(crate) partitions: Vec<i32>,
    pub(crate) offsets: Vec<i64>,
    pub(crate) command_ids: Vec<String>,
    pub(crate) causes: Vec<Option<String>>,
    pub(crate) traces: Vec<Option<String>>,
    pub(crate) repeats: RepeatRows,
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
        self.keys.push(repeat_key(&commit.aggregate, &commit.command_id));
        self.at_ms.push(commit.at_ms.cast_signed());
        self.partitions.push(partition.cast_signed());
        self.offsets.push(offset);
        self.fingerprints.push(commit.fingerprint.cast_signed());
        self.versions.push(commit.version.cast_signed());
        self.events.push(i16::try_from(commit.events.len()).unwrap_or(i16::MAX));
    }
}

impl JournalRows {
    pub(crate) fn append(&mut self, mut later: Self) {
        append!(
            self,
            later,
            aggregates,
            versions,
            types,
            data,
            at_ms,
            partitions,
            offsets,
            command_ids,
            causes,
            traces
        );
        let (repeats, mut later) = (&mut self.repeats, later.repeats);
        append!(repeats, later, keys, at_ms, partitions, offsets, fingerprints, versions, events);
    }

    pub(crate) fn push(&mut self, partition: u32, offset: i64, commit: &Commit<'_>) {
        self.repeats.push(partition, offset, commit);
        let first = commit.version + 1 - commit.events.len() as u64;
        for (event, version) in commit.events.iter().zip(first..) {
            self.aggregates.push(commit.aggregate.to_string());
            self.versions.push(version.cast_signed());
            self.types.push(event.name());
            self.data.push(event.data_json());
            self.at_ms.push(commit.at_ms.cast_signed());
            self.partitions.push(partition.cast_signed());
            self.offsets.push(offset);
            self.command_ids.push(commit.command_id.to_string());
            self.causes.push(commit.cause.as_deref().map(str::to_owned));
            self.traces.push(commit.trace.as_deref().map(str::to_owned));
        }
    }
}
