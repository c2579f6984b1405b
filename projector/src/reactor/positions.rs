//! Tracks the reactor's progress: the records that were read, those with open sagas, and, in Postgres, the checkpoints,
//! the deadlines and the parked records.
//!
//! Invariant: the checkpoints move only if they are as this process last read or wrote them, and the records parked
//! before them are written in the same transaction. A deadline is written before the checkpoint passes its event.
//!
//! Invariant: no checkpoint passes a record with an open saga.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use chassis::env::Secret;
use chassis::postgres::{Connection, PostgresError};
use domain::reactions::Deadline;
use schemas::chain::{Reader, Tally, Verdict};
use schemas::record::{Commit, Record};
use tokio_postgres::GenericClient;

use super::sagas::{DeadlineChange, EndedSaga, RecordPosition, SagaEnd};
use crate::fold::{FoldError, Times};
use crate::parked::{DEADLINES, ParkedRecord, REACTOR};
use crate::postgres::checkpoints::{self, CheckpointMove, Checkpoints, have_moved, reader};
use crate::postgres::columns::ParkedRecords;

/// Minimum interval between checkpoint moves that pass fences alone.
const FENCES_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReactorStoreError {
    #[error(transparent)]
    Connect(#[from] PostgresError),
    #[error("Postgres statement failed")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("another process moved the reactor's checkpoints")]
    Moved,
}

/// Number and age of parked records, or of parked deadlines.
#[derive(Debug)]
pub(crate) struct ParkedSoFar {
    pub(crate) aggregates: u64,
    /// Time for which the oldest has been parked.
    pub(crate) oldest: Duration,
}

/// Progress in one partition.
struct Position {
    reader: Reader,
    /// State of `reader` before the last record.
    before: Reader,
    committed: Reader,
    revision: i64,
    /// Set once the record that was counted last has been read again since the start, and matched.
    is_recognized: bool,
    /// Records with open sagas, in log order.
    open: VecDeque<Open>,
}

/// A record whose sagas have been begun.
struct Open {
    /// Progress that may be committed while this record is open.
    before: Reader,
    record: ParkedRecord,
    /// Number of sagas that have not ended.
    sagas: usize,
}

pub(crate) struct Positions {
    client: Connection,
    by_partition: BTreeMap<u32, Position>,
    have_begun: bool,
    open_sagas: usize,
    /// Set if a commit was read since the checkpoints were last written.
    has_news: bool,
    last_commit: Instant,
    /// Parked records that are not written yet.
    parked: Vec<ParkedRecord>,
    /// Deadline changes that are not written yet. All reactors lock the rows in this order.
    deadlines: BTreeMap<(Deadline, String), DeadlineChange>,
}

impl Positions {
    pub(super) async fn load(
        url: &Secret,
        partitions: u32,
        assigned: &BTreeSet<u32>,
    ) -> Result<Self, ReactorStoreError> {
        let client = connect(url).await?;
        begin_checkpoints(&*client, partitions).await?;
        let (mut by_partition, mut have_begun) = (BTreeMap::new(), false);
        let rows = client.query(checkpoints::LOAD, &[]).await?;
        for row in rows.iter().filter(|row| row.get::<_, &str>("view") == REACTOR) {
            let (partition, reader) = (row.get::<_, i32>("partition").cast_unsigned(), reader(row));
            have_begun |= reader.next_offset > 0 || row.get::<_, i64>("revision") > 0;
            if assigned.contains(&partition) {
                let position = Position {
                    reader,
                    before: reader,
                    committed: reader,
                    revision: row.get("revision"),
                    is_recognized: reader.last_counted < 0,
                    open: VecDeque::new(),
                };
                by_partition.insert(partition, position);
            }
        }
        Ok(Self {
            client,
            by_partition,
            have_begun,
            open_sagas: 0,
            has_news: false,
            last_commit: Instant::now(),
            parked: Vec::new(),
            deadlines: BTreeMap::new(),
        })
    }

    /// Returns the offsets to read from. The record that was counted last is read again once, to recognize the log.
    pub(super) fn from(&self) -> Vec<(u32, i64)> {
        let from = |at: &Position| if at.is_recognized { at.reader.next_offset } else { at.reader.last_counted };
        self.by_partition.iter().map(|(partition, at)| (*partition, from(at))).collect()
    }

    /// Returns whether a reactor ever moved a checkpoint, in any partition, or an operator chose where to begin.
    pub(super) fn have_begun(&self) -> bool {
        self.have_begun
    }

    /// Returns the number of sagas that have begun and not ended.
    pub(super) fn open_sagas(&self) -> usize {
        self.open_sagas
    }

    /// Advances past a record. Returns `None` if it was read before or its partition is not assigned to this process.
    pub(super) fn read(
        &mut self,
        (partition, offset): RecordPosition,
        record: Option<&Record<'_>>,
    ) -> Result<Option<Verdict>, FoldError> {
        let Some(position) = self.by_partition.get_mut(&partition) else { return Ok(None) };
        if offset < position.reader.next_offset {
            if offset == position.reader.last_counted && !position.reader.recognizes(record) {
                return Err(FoldError::OtherHistory { partition, offset });
            }
            position.is_recognized |= offset == position.reader.last_counted;
            return Ok(None);
        }
        if !position.is_recognized {
            return Err(FoldError::OtherHistory { partition, offset: position.reader.last_counted });
        }
        position.before = position.reader;
        let verdict = position.reader.read(offset, record).map_err(|source| FoldError::Chain { partition, source })?;
        self.has_news |= matches!(record, Some(Record::Commit(_)));
        Ok(Some(verdict))
    }

    pub(super) fn set(&mut self, deadlines: Vec<DeadlineChange>) {
        self.deadlines.extend(deadlines.into_iter().map(|set| ((set.deadline, set.aggregate.clone()), set)));
    }

    /// Registers the number of sagas that the last record begins.
    pub(super) fn begin(
        &mut self,
        (partition, offset): RecordPosition,
        value: &[u8],
        commit: &Commit<'_>,
        sagas: usize,
    ) {
        let Some(position) = self.by_partition.get_mut(&partition).filter(|_| sagas > 0) else { return };
        let record = ParkedRecord {
            view: REACTOR,
            aggregate: commit.aggregate.to_string(),
            partition,
            offset,
            version: commit.version,
            reason: None,
            record: value.to_vec(),
        };
        self.open_sagas += sagas;
        position.open.push_back(Open { before: position.before, record, sagas });
    }

    /// Records the end of a saga. Returns `false` if it was never begun because another process may have taken over.
    pub(super) fn ended(&mut self, EndedSaga { source: (partition, offset), how, .. }: EndedSaga) -> bool {
        self.open_sagas -= 1;
        let Some(position) = self.by_partition.get_mut(&partition) else { return true };
        let Ok(index) = position.open.binary_search_by_key(&offset, |open| open.record.offset) else { return true };
        let open = &mut position.open[index];
        match how {
            // The record stays open, so that no checkpoint passes it.
            SagaEnd::Dropped | SagaEnd::Late(_) => return false,
            SagaEnd::Failed(reason) => open.record.reason = Some(reason),
            SagaEnd::Done | SagaEnd::NotDue => {}
        }
        open.sagas -= 1;
        while let Some(done) = position.open.pop_front_if(|open| open.sagas == 0) {
            if let Some(reason) = &done.record.reason {
                let aggregate = done.record.aggregate.as_str();
                tracing::error!(aggregate, reason, "reaction failed; record parked");
                self.parked.push(done.record);
            }
        }
        true
    }

    /// Writes the progress since the last call. Returns whether that proved the checkpoints to be this process's.
    pub(super) async fn commit(&mut self) -> Result<bool, ReactorStoreError> {
        let is_due = self.has_news || !self.parked.is_empty() || self.last_commit.elapsed() >= FENCES_EVERY;
        let moves: Vec<CheckpointMove> =
            self.by_partition.iter().filter_map(|(partition, at)| at.due(*partition)).collect();
        // Deadlines are written even if an earlier record is open; the checkpoints then keep their values.
        let is_news = !self.deadlines.is_empty() || is_due && moves.iter().any(|to| to.from != to.to);
        if !is_news {
            return Ok(false);
        }
        let (set, off) = self.deadlines.values().partition::<Vec<_>, _>(|set| set.due.is_some());
        let checkpoints = Checkpoints::new(&moves);
        let parked = ParkedRecords::new(&self.parked);
        let transaction = self.client.transaction().await?;
        let moved = transaction.execute(checkpoints::MOVE, &checkpoints.params()).await;
        if have_moved(&moved) {
            return Err(ReactorStoreError::Moved);
        }
        moved?;
        if !set.is_empty() {
            let (kinds, aggregates) = names(&set);
            let due: Vec<i64> = set.iter().filter_map(|set| Some(set.due?.0.cast_signed())).collect();
            let causes: Vec<&str> = set.iter().map(|set| &*set.cause).collect();
            transaction.execute(include_str!("set_deadlines.sql"), &[&kinds, &aggregates, &due, &causes]).await?;
        }
        if !off.is_empty() {
            let (kinds, aggregates) = names(&off);
            transaction.execute(include_str!("call_off_deadlines.sql"), &[&kinds, &aggregates]).await?;
        }
        if !self.parked.is_empty() {
            transaction.execute(include_str!("../postgres/insert_parked.sql"), &parked.params()).await?;
        }
        transaction.commit().await?;
        self.deadlines.clear();
        self.parked.clear();
        self.has_news = false;
        self.last_commit = Instant::now();
        self.by_partition.values_mut().for_each(|at| at.committed = at.settled());
        Ok(true)
    }

    /// Verifies that the checkpoints are still this process's. Returns how much is parked of what.
    pub(super) async fn verify(&self) -> Result<[(&'static str, ParkedSoFar); 2], ReactorStoreError> {
        let (mut partitions, mut offsets, mut revisions) = (Vec::new(), Vec::new(), Vec::new());
        for (partition, at) in &self.by_partition {
            partitions.push(partition.cast_signed());
            offsets.push(at.committed.next_offset);
            revisions.push(at.revision);
        }
        let sql = include_str!("verify_checkpoints.sql");
        let row = self.client.query_one(sql, &[&REACTOR, &partitions, &offsets, &revisions]).await?;
        if usize::try_from(row.get::<_, i64>(0)).ok() != Some(partitions.len()) {
            return Err(ReactorStoreError::Moved);
        }
        let parked = |at| ParkedSoFar {
            aggregates: row.get::<_, i64>(at).cast_unsigned(),
            oldest: Duration::try_from_secs_f64(row.get(at + 1)).unwrap_or_default(),
        };
        Ok([(REACTOR, parked(1)), (DEADLINES, parked(3))])
    }
}

impl Position {
    /// Returns the progress up to the first open record.
    fn settled(&self) -> Reader {
        self.open.front().map_or(self.reader, |open| open.before)
    }

    fn due(&self, partition: u32) -> Option<CheckpointMove> {
        let to = self.settled();
        // At offset 0 nothing has been read yet.
        (to.next_offset > 0).then(|| CheckpointMove {
            name: REACTOR.to_owned(),
            partition,
            from: self.committed,
            to,
            tally: Tally::default(),
            times: Times::default(),
            revision: self.revision,
        })
    }
}

/// Creates the reactor's missing checkpoints.
pub(super) async fn begin_checkpoints(
    client: &impl GenericClient,
    partitions: u32,
) -> Result<(), tokio_postgres::Error> {
    let (names, folds) = (vec![REACTOR.to_owned()], vec![1_i32]);
    client.execute(checkpoints::BEGIN, &[&names, &partitions.cast_signed(), &folds]).await?;
    Ok(())
}

pub(super) fn names<'a>(sets: &[&'a DeadlineChange]) -> (Vec<&'static str>, Vec<&'a str>) {
    sets.iter().map(|set| (kind(set.deadline), set.aggregate.as_str())).unzip()
}

/// Returns the deadline's name in the table `deadlines`.
pub(super) fn kind(deadline: Deadline) -> &'static str {
    match deadline {
        Deadline::ExpireOrder => "expire-order",
        Deadline::OpenSale => "open-sale",
        Deadline::CloseSale => "close-sale",
        Deadline::LapseHolds => "lapse-holds",
    }
}

pub(super) fn of_kind(kind: &str) -> Option<Deadline> {
    let all = [Deadline::ExpireOrder, Deadline::OpenSale, Deadline::CloseSale, Deadline::LapseHolds];
    all.into_iter().find(|deadline| self::kind(*deadline) == kind)
}

pub(super) async fn connect(url: &Secret) -> Result<Connection, PostgresError> {
    chassis::postgres::connect(url, "", "projector reactor").await
}
