//! Tracks the reactor's progress: the records that were read, those with open sagas, and, in Postgres, the checkpoints,
//! the deadlines and the parked records.
//!
//! Invariant: the checkpoints move only if they are as this process last read or wrote them, and the records parked
//! before them are written in the same transaction. A deadline is written before the checkpoint passes its event.
//!
//! Invariant: no checkpoint passes a record with an open saga.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use chassis::postgres::{Connection, PostgresError, PostgresSettings};
use domain::TimeMs;
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
    at: TimeMs,
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
        postgres: &PostgresSettings,
        partitions: u32,
        assigned: &BTreeSet<u32>,
    ) -> Result<Self, ReactorStoreError> {
        let client = connect(postgres).await?;
        begin_checkpoints(&*client, partitions).await?;
        let (mut by_partition, mut have_begun) = (BTreeMap::new(), false);
        let rows = client.query(checkpoints::LOAD, &[]).await?;
        for row in rows.iter().filter(|row| row.get::<_, &str>("view") == REACTOR) {
            let (partition, reader) = (row.get::<_, i32>("partition").cast_unsigned(), reader(row));
            have_begun |= reader.next_offset > 0 || row.get::<_, i64>("revision") > 0;
            if assigned.contains(&partition) {
                by_partition.insert(partition, Position::new(reader, row.get("revision")));
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

    /// Returns the offset up to which a partition of this process was read.
    pub(super) fn next_offset(&self, partition: u32) -> i64 {
        self.by_partition.get(&partition).map_or(0, |at| at.reader.next_offset)
    }

    /// Returns whether a reactor ever moved a checkpoint, in any partition, or an operator chose where to begin.
    pub(super) fn have_begun(&self) -> bool {
        self.have_begun
    }

    /// Returns the number of sagas that have begun and not ended.
    pub(super) fn open_sagas(&self) -> usize {
        self.open_sagas
    }

    /// Returns the time of the oldest record with an open saga.
    pub(super) fn oldest_open(&self) -> Option<TimeMs> {
        self.by_partition.values().filter_map(|at| Some(at.open.front()?.at)).min()
    }

    /// Advances past a record. Returns `None` if it was read before or its partition is not assigned to this process.
    pub(super) fn read(
        &mut self,
        at: RecordPosition,
        record: Option<&Record<'_>>,
    ) -> Result<Option<Verdict>, FoldError> {
        let Some(position) = self.by_partition.get_mut(&at.0) else { return Ok(None) };
        let verdict = position.read(at, record)?;
        self.has_news |= verdict.is_some() && matches!(record, Some(Record::Commit(_)));
        Ok(verdict)
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
        position.begin(record, TimeMs(commit.at_ms), sagas);
    }

    /// Records the end of a saga. Returns `false` if it was never begun because another process may have taken over.
    pub(super) fn ended(&mut self, EndedSaga { source: (partition, offset), how, .. }: EndedSaga) -> bool {
        self.open_sagas -= 1;
        let Some(position) = self.by_partition.get_mut(&partition) else { return true };
        position.ended(offset, how, &mut self.parked)
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
    fn new(reader: Reader, revision: i64) -> Self {
        let is_recognized = reader.last_counted < 0;
        Self { reader, before: reader, committed: reader, revision, is_recognized, open: VecDeque::new() }
    }

    /// Advances past a record. Returns `None` if it was read before.
    fn read(
        &mut self,
        (partition, offset): RecordPosition,
        record: Option<&Record<'_>>,
    ) -> Result<Option<Verdict>, FoldError> {
        if offset < self.reader.next_offset {
            if offset == self.reader.last_counted && !self.reader.recognizes(record) {
                return Err(FoldError::OtherHistory { partition, offset });
            }
            self.is_recognized |= offset == self.reader.last_counted;
            return Ok(None);
        }
        if !self.is_recognized {
            return Err(FoldError::OtherHistory { partition, offset: self.reader.last_counted });
        }
        self.before = self.reader;
        self.reader.read(offset, record).map(Some).map_err(|source| FoldError::Chain { partition, source })
    }

    /// Registers the number of sagas that the last record begins.
    fn begin(&mut self, record: ParkedRecord, at: TimeMs, sagas: usize) {
        self.open.push_back(Open { before: self.before, record, at, sagas });
    }

    /// Records the end of a saga, and adds the records that have failed to `parked` once all earlier ones are done.
    /// Returns `false` if the saga was never begun.
    fn ended(&mut self, offset: i64, how: SagaEnd, parked: &mut Vec<ParkedRecord>) -> bool {
        let Ok(index) = self.open.binary_search_by_key(&offset, |open| open.record.offset) else { return true };
        let open = &mut self.open[index];
        match how {
            // The record stays open, so that no checkpoint passes it.
            SagaEnd::Dropped | SagaEnd::Late(_) => return false,
            SagaEnd::Failed(reason) => open.record.reason = Some(reason),
            SagaEnd::Done | SagaEnd::NotDue => {}
        }
        open.sagas -= 1;
        while let Some(done) = self.open.pop_front_if(|open| open.sagas == 0) {
            if let Some(reason) = &done.record.reason {
                let aggregate = done.record.aggregate.as_str();
                tracing::error!(aggregate, reason, "reaction failed; record parked");
                parked.push(done.record);
            }
        }
        true
    }

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

pub(super) async fn connect(postgres: &PostgresSettings) -> Result<Connection, PostgresError> {
    chassis::postgres::connect(postgres, "", "projector reactor").await
}

#[cfg(test)]
mod tests {
    use schemas::record::{Claim, Epoch, Fence};

    use super::*;

    const NONCE: u64 = 7;

    /// Returns the record at an offset of a log with one claim.
    fn record(offset: i64) -> Record<'static> {
        match offset.cast_unsigned() {
            0 => Record::Claim(Claim { nonce: NONCE, url: "http://127.0.0.1:1".into(), partitions: None }),
            seq => Record::Fence(Fence { epoch: Epoch { claim: 0, nonce: NONCE }, seq }),
        }
    }

    /// Reads the records at these offsets, each of which begins this many sagas.
    fn read(position: &mut Position, records: impl IntoIterator<Item = (i64, usize)>) {
        for (offset, sagas) in records {
            let verdict = position.read((0, offset), Some(&record(offset))).unwrap().unwrap();
            assert!(!matches!(verdict, Verdict::PassedOver(_)), "{verdict:?} at {offset}");
            let (aggregate, value) = (format!("order/{offset}"), Vec::new());
            let record = ParkedRecord {
                view: REACTOR,
                aggregate,
                partition: 0,
                offset,
                version: 1,
                reason: None,
                record: value,
            };
            if sagas > 0 {
                position.begin(record, TimeMs(offset.cast_unsigned()), sagas);
            }
        }
    }

    /// Returns the next offset that may be committed.
    fn settled(position: &Position) -> i64 {
        position.due(0).map_or(0, |due| due.to.next_offset)
    }

    #[test]
    fn no_checkpoint_passes_the_first_record_with_an_open_saga() {
        let (mut position, mut parked) = (Position::new(Reader::START, 0), Vec::new());
        assert_eq!(settled(&position), 0);
        read(&mut position, [(0, 0), (1, 0)]);
        assert_eq!(settled(&position), 2);
        read(&mut position, [(2, 2), (3, 0), (4, 1), (5, 0)]);
        assert_eq!(settled(&position), 2);
        assert!(position.ended(4, SagaEnd::Done, &mut parked));
        assert!(position.ended(2, SagaEnd::Done, &mut parked));
        assert_eq!(settled(&position), 2, "one saga of the record at offset 2 is open");
        assert!(position.ended(2, SagaEnd::NotDue, &mut parked));
        assert_eq!(settled(&position), 6);
        assert!(parked.is_empty());
    }

    #[test]
    fn a_record_whose_saga_was_dropped_or_is_late_stays_open() {
        for how in [SagaEnd::Dropped, SagaEnd::Late("no answer".to_owned())] {
            let (mut position, mut parked) = (Position::new(Reader::START, 0), Vec::new());
            read(&mut position, [(0, 0), (1, 1), (2, 1)]);
            assert!(!position.ended(1, how, &mut parked));
            assert!(position.ended(2, SagaEnd::Done, &mut parked));
            assert_eq!((settled(&position), parked.len()), (1, 0));
        }
    }

    #[test]
    fn a_failed_record_is_parked_with_its_reason_once_the_checkpoint_passes_it() {
        let (mut position, mut parked) = (Position::new(Reader::START, 0), Vec::new());
        read(&mut position, [(0, 0), (1, 1), (2, 2)]);
        let failed = || SagaEnd::Failed("the order is unknown".to_owned());
        assert!(position.ended(2, failed(), &mut parked));
        assert!(position.ended(2, SagaEnd::Done, &mut parked));
        assert_eq!((settled(&position), parked.len()), (1, 0), "an earlier record is open");
        assert!(position.ended(1, SagaEnd::Done, &mut parked));
        assert_eq!(settled(&position), 3);
        let parked: Vec<_> = parked.iter().map(|parked| (parked.offset, parked.reason.as_deref())).collect();
        assert_eq!(parked, [(2, Some("the order is unknown"))]);
    }

    #[test]
    fn a_log_is_read_on_only_if_its_last_counted_record_is_the_one_that_was_read_before() {
        let mut position = Position::new(Reader::START, 0);
        read(&mut position, [(0, 0), (1, 0)]);
        let resumed = || Position::new(position.reader, 0);
        let mut same = resumed();
        assert!(matches!(same.read((0, 1), Some(&record(1))), Ok(None)), "it is not reacted to twice");
        read(&mut same, [(2, 0)]);
        let unseen = resumed().read((0, 2), Some(&record(2)));
        assert!(matches!(unseen, Err(FoldError::OtherHistory { offset: 1, .. })), "{unseen:?}");
        let other = resumed().read((0, 1), Some(&record(9)));
        assert!(matches!(other, Err(FoldError::OtherHistory { offset: 1, .. })), "{other:?}");
    }
}
