//! Writes rows and positions to Redis.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use chassis::redis::{Pipelines, RESPONSE_TIMEOUT};
use redis::Pipeline;
use schemas::aggregate;
use schemas::cache::{ROW_TTL_SECS, STORED, value};
use schemas::feeds::{FeedId, PerView, StoredView};
use schemas::views::{Source, row_body};

use super::advance::Advance;
use super::error::CacheError;
use super::step::Position;
use super::{Cache, MAX_ROWS_A_CALL};
use crate::fold::Rows;
use crate::share::Place;

/// A row to write.
pub(super) struct NewRow {
    /// Index of its view's position in the call.
    position: usize,
    key: String,
    version: u64,
    value: Vec<u8>,
}

/// The place of a script call within its batch.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) is_first: bool,
    pub(super) is_last: bool,
}

impl Cache {
    /// Shows rows, in one round trip, except for those that Redis already shows. If they are committed, readers are
    /// notified that Postgres has them, and Redis records that with the next call that moves the position.
    pub(crate) async fn show(
        &mut self,
        rows: &PerView<Rows>,
        advances: &[Advance],
        are_committed: bool,
    ) -> Result<(), CacheError> {
        let verified = self.verify().await;
        let Some(mut step) = self.step.take() else { return verified };
        if are_committed {
            step.stored.extend(advances.iter().map(|advance| (advance.place, advance.to)));
        }
        let (mut pipelines, mut calls) = (Pipelines::default(), BTreeMap::new());
        let (positions, mut lost) = step.positions(advances);
        let mut rows = self.rows(step.partitions, rows, &positions);
        for (partition, positions) in positions {
            let rows = rows.remove(&partition).unwrap_or_default();
            let chunks = rows.chunks(MAX_ROWS_A_CALL).map(Some).chain(rows.is_empty().then_some(None));
            let count = rows.len().div_ceil(MAX_ROWS_A_CALL).max(1);
            for (number, chunk) in chunks.enumerate() {
                let turn = Turn { is_first: number == 0, is_last: number + 1 == count };
                self.call_show(pipelines.of(partition), partition, &positions, chunk.unwrap_or_default(), turn);
            }
            calls.insert(partition, positions);
        }
        if are_committed {
            self.tell_stored(&mut pipelines, advances);
        }
        let mut failed = Ok(());
        for (partition, answers) in pipelines.send::<u64>(&self.connection, RESPONSE_TIMEOUT).await {
            // A lost notification only costs time: readers that wait for Postgres also poll it.
            let Some(positions) = calls.remove(&partition) else { continue };
            // A set bit stands for a position that was not the expected one.
            let others = match answers {
                Ok(answers) => answers.into_iter().fold(0, |all, one| all | one),
                Err(error) => {
                    failed = Err(CacheError::Call(error));
                    u64::MAX
                }
            };
            for (number, Position { feed, shown, .. }) in positions.into_iter().enumerate() {
                let place = Place { feed, partition };
                match others >> number & 1 {
                    0 => drop(step.shown.insert(place, shown)),
                    _ => lost.push(place),
                }
            }
        }
        let shown = step.lose(&lost);
        self.step = Some(step);
        verified.and(failed).and(shown)
    }

    /// Publishes to readers how far Postgres is.
    fn tell_stored(&self, pipelines: &mut Pipelines, advances: &[Advance]) {
        let mut news = BTreeMap::<u32, String>::new();
        for Advance { place: Place { feed, partition }, to, .. } in advances {
            let words = news.entry(*partition).or_insert_with(|| partition.to_string());
            write!(words, " {}{STORED}={to}", feed.name()).expect("a string takes all");
        }
        for words in news.into_values() {
            pipelines.news().publish(self.keys.news(), words).ignore();
        }
    }

    /// Returns the rows of positions that move, by partition.
    fn rows(
        &self,
        partitions: u32,
        all: &PerView<Rows>,
        positions: &BTreeMap<u32, Vec<Position>>,
    ) -> HashMap<u32, Vec<NewRow>> {
        let mut rows: HashMap<u32, Vec<_>> = HashMap::new();
        for view in StoredView::all() {
            let Source::Aggregate(fold) = view.view().source else { continue };
            for (key, (version, data)) in &all[view] {
                let partition = aggregate::partition(fold.aggregate, key, partitions);
                let moves = |position: &Position| position.feed == FeedId::View(view) && position.moves;
                let Some(position) = positions.get(&partition).and_then(|all| all.iter().position(moves)) else {
                    continue;
                };
                let incarnation = positions[&partition][position].shown.making.incarnation;
                let row_key = self.keys.row(partition, incarnation, view, key);
                let data = serde_json::to_string(data).expect("rows hold nothing that JSON cannot");
                let value = value(*version, &[], row_body(key, *version, &data).as_bytes());
                rows.entry(partition).or_default().push(NewRow { position, key: row_key, version: *version, value });
            }
        }
        rows
    }

    /// Adds one of a batch's script calls to the pipeline. Between the first and the last call, no reader may read or
    /// fill in a row: a row of this batch might be evicted, and an older one be filled in.
    pub(super) fn call_show(
        &self,
        pipeline: &mut Pipeline,
        partition: u32,
        positions: &[Position],
        rows: &[NewRow],
        turn: Turn,
    ) {
        let call = pipeline.cmd("EVALSHA").arg(&self.script).arg(2 * positions.len() + rows.len());
        for Position { feed, .. } in positions {
            call.arg(self.keys.shown(feed.name(), partition));
        }
        for Position { feed, .. } in positions {
            call.arg(self.keys.ahead(feed.name(), partition));
        }
        for row in rows {
            call.arg(&row.key);
        }
        call.arg(self.keys.news()).arg(partition).arg(positions.len()).arg(ROW_TTL_SECS);
        for Position { feed, expected, shown, moves, stored } in positions {
            let between = if *moves { format!("{expected}+") } else { expected.clone() };
            let next = if turn.is_last { shown.to_string() } else { between.clone() };
            call.arg(feed.name()).arg(if turn.is_first { expected } else { &between }).arg(next).arg(shown.offset);
            call.arg(stored.filter(|_| turn.is_last || !*moves).map_or_else(String::new, |stored| stored.to_string()));
        }
        for NewRow { position, version, value, .. } in rows {
            call.arg(position + 1).arg(*version).arg(value);
        }
    }
}
