//! The rows of the table `checkpoints`, and their compare-and-set.

use schemas::chain::{Reader, Tally};
use schemas::record::Epoch;
use schemas::tables::{nonce_from_sql, nonce_to_sql};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::columns::Param;
use crate::fold::Times;

/// Creates missing checkpoints, at the start of the log.
pub(crate) const BEGIN: &str = include_str!("begin_checkpoints.sql");
pub(crate) const LOAD: &str = include_str!("load_checkpoints.sql");
/// Moves checkpoints; its parameters are [`Checkpoints::params`].
pub(crate) const MOVE: &str = include_str!("move_checkpoints.sql");

/// Returns whether [`MOVE`] changed nothing because another process has moved one of the checkpoints.
pub(crate) fn have_moved<T>(moved: &Result<T, tokio_postgres::Error>) -> bool {
    // The statement divides by zero unless all checkpoints are where they were expected.
    moved.as_ref().is_err_and(|error| error.code() == Some(&SqlState::DIVISION_BY_ZERO))
}

/// A checkpoint to move, with its expected and its new state.
pub(crate) struct CheckpointMove {
    /// Name of the checkpoint, see [`Target::name`](super::Target::name).
    pub(crate) name: String,
    pub(crate) partition: u32,
    pub(crate) from: Reader,
    pub(crate) to: Reader,
    pub(crate) tally: Tally,
    pub(crate) times: Times,
    pub(crate) revision: i64,
}

/// Columns of the checkpoints that move.
#[derive(Default)]
pub(crate) struct Checkpoints<'a> {
    views: Vec<&'a str>,
    partitions: Vec<i32>,
    old_next: Vec<i64>,
    old_nonces: Vec<i64>,
    next: Vec<i64>,
    claims: Vec<i64>,
    nonces: Vec<i64>,
    seqs: Vec<i64>,
    last_counted: Vec<i64>,
    counted: Vec<i64>,
    hashes: Vec<i64>,
    last_at_ms: Vec<i64>,
    max_key_ms: Vec<i64>,
    revisions: Vec<i64>,
    count: i64,
}

impl<'a> Checkpoints<'a> {
    pub(crate) fn new(moves: &'a [CheckpointMove]) -> Self {
        let mut columns = Self { count: i64::try_from(moves.len()).expect("a few moves"), ..Self::default() };
        let nonce = |reader: &Reader| reader.epoch.map_or(0, |epoch| nonce_to_sql(epoch.nonce));
        for CheckpointMove { name, partition, from, to, tally, times, revision } in moves {
            columns.views.push(name);
            columns.partitions.push(partition.cast_signed());
            columns.old_next.push(from.next_offset);
            columns.old_nonces.push(nonce(from));
            columns.next.push(to.next_offset);
            columns.claims.push(to.epoch.map_or(-1, |epoch| epoch.claim));
            columns.nonces.push(nonce(to));
            columns.seqs.push(to.last_seq.cast_signed());
            columns.last_counted.push(to.last_counted);
            columns.counted.push(tally.counted.cast_signed());
            columns.hashes.push(nonce_to_sql(tally.hash));
            columns.last_at_ms.push(times.last_at_ms.cast_signed());
            columns.max_key_ms.push(times.max_key_ms.cast_signed());
            columns.revisions.push(*revision);
        }
        columns
    }

    pub(crate) fn params(&self) -> [Param<'_>; 15] {
        [
            &self.views,
            &self.partitions,
            &self.old_next,
            &self.old_nonces,
            &self.next,
            &self.claims,
            &self.nonces,
            &self.seqs,
            &self.last_counted,
            &self.counted,
            &self.hashes,
            &self.last_at_ms,
            &self.max_key_ms,
            &self.count,
            &self.revisions,
        ]
    }
}

pub(crate) fn tally(row: &Row) -> Tally {
    let counted: i64 = row.get("counted");
    Tally { counted: counted.cast_unsigned(), hash: nonce_from_sql(row.get("counted_hash")) }
}

pub(crate) fn reader(row: &Row) -> Reader {
    let claim: i64 = row.get("epoch_claim");
    let last_seq: i64 = row.get("last_seq");
    Reader {
        next_offset: row.get("next_offset"),
        epoch: (claim >= 0).then(|| Epoch { claim, nonce: nonce_from_sql(row.get("epoch_nonce")) }),
        last_seq: last_seq.cast_unsigned(),
        last_counted: row.get("last_counted"),
    }
}
