//! Where the reactor is, in Postgres: its checkpoints, the alarms that it set, and what is parked.
//!
//! Invariant: all of it moves in one transaction, and only while the checkpoints are what this process read or wrote last.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chassis::env::Secret;
use chassis::postgres::PostgresError;
use domain::reactions::Alarm;
use schemas::chain::{Reader, Tally, Verdict};
use schemas::record::Record;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use super::chains::Set;
use crate::fold::{FoldError, Times};
use crate::poison::ParkedRecord;
use crate::postgres::{Checkpoints, Move, ParkedRecords, reader};

/// The name of its checkpoints, and of what is parked of it.
pub(crate) const REACTOR: &str = "reactor";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReactorStoreError {
    #[error("the Postgres URL cannot be used")]
    Url(#[from] PostgresError),
    #[error("Postgres did not do what was asked")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("another process moved the reactor's checkpoints")]
    Moved,
}

struct Position {
    reader: Reader,
    committed: Reader,
    revision: i64,
    /// Whether the record that was counted last was seen again since the start.
    is_recognized: bool,
}

pub(crate) struct Positions {
    client: Client,
    by_partition: BTreeMap<u32, Position>,
    /// Aggregates of which nothing is reacted to until somebody looked.
    pub(super) parked: HashSet<String>,
    /// Not written yet.
    new_parked: Vec<ParkedRecord>,
    alarms: HashMap<(Alarm, String), Set>,
}

impl Positions {
    pub(super) async fn load(
        url: &Secret,
        partitions: u32,
        assigned: &BTreeSet<u32>,
    ) -> Result<Self, ReactorStoreError> {
        let client = connect(url).await?;
        let (names, folds) = (vec![REACTOR.to_owned()], vec![1_i32]);
        let begin = include_str!("../postgres/begin_checkpoints.sql");
        client.execute(begin, &[&names, &partitions.cast_signed(), &folds]).await?;
        let mut by_partition = BTreeMap::new();
        for row in client.query(include_str!("../postgres/load_checkpoints.sql"), &[]).await? {
            let partition = row.get::<_, i32>("partition").cast_unsigned();
            if row.get::<_, &str>("view") == REACTOR && assigned.contains(&partition) {
                let reader = reader(&row);
                let (committed, is_recognized) = (reader, reader.last_counted < 0);
                let revision = row.get("revision");
                by_partition.insert(partition, Position { reader, committed, revision, is_recognized });
            }
        }
        let sql = "SELECT DISTINCT aggregate FROM parked WHERE view = $1";
        let parked = client.query(sql, &[&REACTOR]).await?.iter().map(|row| row.get(0)).collect();
        Ok(Self { client, by_partition, parked, new_parked: Vec::new(), alarms: HashMap::new() })
    }

    /// Where to read from: what was counted last is read again.
    pub(super) fn from(&self) -> Vec<(u32, i64)> {
        self.by_partition.iter().map(|(partition, at)| (*partition, at.reader.last_counted.max(0))).collect()
    }

    /// `None`: it was read before.
    pub(super) fn read(
        &mut self,
        partition: u32,
        offset: i64,
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
        let verdict = position.reader.read(offset, record);
        verdict.map(Some).map_err(|source| FoldError::Chain { partition, source })
    }

    pub(super) fn set(&mut self, alarms: Vec<Set>) {
        self.alarms.extend(alarms.into_iter().map(|set| ((set.alarm, set.aggregate.clone()), set)));
    }

    pub(super) fn park(&mut self, record: ParkedRecord) {
        self.parked.insert(record.aggregate.clone());
        self.new_parked.push(record);
    }

    /// What was done since the last time.
    pub(super) async fn commit(&mut self) -> Result<(), ReactorStoreError> {
        let moves: Vec<Move> = self
            .by_partition
            .iter()
            .filter(|(_, at)| at.reader != at.committed)
            .map(|(partition, at)| Move {
                view: 0,
                partition: *partition,
                from: at.committed,
                to: at.reader,
                tally: Tally::default(),
                times: Times::default(),
                revision: at.revision,
            })
            .collect();
        if moves.is_empty() {
            return Ok(());
        }
        let (set, off) = self.alarms.values().partition::<Vec<_>, _>(|set| set.due.is_some());
        let checkpoints = Checkpoints::new(&moves, |_| REACTOR.to_owned());
        let parked = ParkedRecords::new(&self.new_parked, |_| REACTOR);
        let transaction = self.client.transaction().await?;
        let moved = transaction.execute(include_str!("../postgres/move_checkpoints.sql"), &checkpoints.params()).await;
        if moved.as_ref().is_err_and(|error| error.code() == Some(&SqlState::DIVISION_BY_ZERO)) {
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
        if !self.new_parked.is_empty() {
            transaction.execute(include_str!("../postgres/insert_parked.sql"), &parked.params()).await?;
        }
        transaction.commit().await?;
        self.alarms.clear();
        self.new_parked.clear();
        self.by_partition.values_mut().for_each(|at| at.committed = at.reader);
        Ok(())
    }
}

fn names<'a>(sets: &[&'a Set]) -> (Vec<&'static str>, Vec<&'a str>) {
    sets.iter().map(|set| (kind(set.alarm), set.aggregate.as_str())).unzip()
}

/// As in the table.
pub(super) fn kind(alarm: Alarm) -> &'static str {
    match alarm {
        Alarm::ExpireOrder => "expire-order",
        Alarm::OpenSale => "open-sale",
        Alarm::CloseSale => "close-sale",
    }
}

pub(super) fn of_kind(kind: &str) -> Option<Alarm> {
    [Alarm::ExpireOrder, Alarm::OpenSale, Alarm::CloseSale].into_iter().find(|alarm| self::kind(*alarm) == kind)
}

pub(super) async fn connect(url: &Secret) -> Result<Client, ReactorStoreError> {
    let (client, connection) = chassis::postgres::session(url, "", "projector reactor")?.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %error, "the reactor's connection to Postgres is gone");
        }
    });
    Ok(client)
}
