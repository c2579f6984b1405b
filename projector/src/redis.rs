//! The views in Redis: each partition's rows, and the positions up to which they are complete.
//!
//! A row that a single aggregate feeds is a fold of counted records, and correct at its version. So it is shown as soon
//! as it is folded, while Postgres is still committing it. Redis records which rows Postgres may lack, so that readers
//! do not fill in older ones.
//!
//! Invariant: any failure (a timeout, a position that another process moved) puts a view of a partition out of sync.
//! Nothing more of it is written until [`Cache::resume`] finds its position to be correct, or begins a new incarnation.

mod error;
mod advance;
mod bases;
mod change;
pub(crate) mod fitness;
mod announced;
#[cfg(test)]
mod model;
mod step;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use chassis::env::Secret;
use chassis::redis::{Connection, Pipelines, RESPONSE_TIMEOUT, RedisSetupError};
use redis::{Pipeline, RedisError, Script};
use schemas::aggregate;
use schemas::cache::{Keys, Making, ROW_TTL_SECS, SHOW, STORED, Shown, value};
use schemas::feeds::{FeedId, PerView, StoredView};
use schemas::views::{Source, row_body};

use crate::fold::{Progress, Rows};
use crate::parked::Parked;
use crate::share::{Place, Share};
pub(crate) use advance::Advance;
use announced::Announced;
pub(crate) use change::{await_revision, change_position, declare_stale};
pub(crate) use error::CacheError;
use error::name;
use step::{Position, Step};

/// Maximum number of rows in a script call, because a script blocks Redis while it runs.
pub(crate) const MAX_ROWS_A_CALL: usize = 500;
/// Interval between checks that the positions in Redis are still those that this projector wrote.
const VERIFY_EVERY: Duration = Duration::from_secs(1);
/// Timeout of such a check, because folding waits for it.
const LOOK_WITHIN: Duration = Duration::from_millis(200);

pub(crate) struct Cache {
    connection: Connection,
    keys: Keys,
    /// SHA1 hash of the script that shows a batch.
    script: String,
    /// `None` while all places are out of sync.
    step: Option<Step>,
    /// Incarnations that have been in sync since [`Self::lose_step`].
    held: HashMap<Place, u64>,
    announced: Announced,
}

/// The outcome of [`Cache::resume`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resumed {
    /// All places continue from their positions in Redis.
    AsItStood,
    /// New incarnations of this number of places were begun.
    Anew(usize),
    /// Still out of sync: Redis does not show the share's checkpoints or generations.
    NotYet,
}

/// Returns whether rows are shown before Postgres has them: those that a single aggregate feeds, while no aggregate of
/// their place is parked. Parked records may be folded or discarded at any moment, which a projector notices only at
/// its next commit.
pub(crate) fn is_early((feed, partition): Place, parked: &Parked, partitions: u32) -> bool {
    feed.has_rows_in_redis() && !parked.are_in((feed, partition), partitions)
}

/// The positions found in Redis, and the partitions whose servers did not answer.
#[derive(Default)]
struct Found {
    positions: HashMap<Place, String>,
    away: BTreeMap<u32, RedisError>,
}

/// A row to write: key, version, value.
type NewRow = (String, u64, Vec<u8>);

impl Cache {
    pub(crate) fn connect(url: &Secret, prefix: &str) -> Result<Self, RedisSetupError> {
        Ok(Self {
            connection: chassis::redis::connect(url)?,
            keys: Keys::new(prefix),
            script: Script::new(SHOW).get_hash().to_owned(),
            step: None,
            held: HashMap::new(),
            announced: Announced::default(),
        })
    }

    /// Returns the connection and the key names, for other writers than that of the rows and positions.
    pub(crate) fn connection(&self) -> (Connection, Keys) {
        (self.connection.clone(), self.keys.clone())
    }

    pub(crate) fn is_in_step(&self) -> bool {
        self.step.as_ref().is_some_and(|step| step.shown.len() == step.places.len())
    }

    /// Marks all places as out of sync, because another projector may have written since.
    pub(crate) fn lose_step(&mut self) {
        self.step = None;
        self.held.clear();
        self.announced = Announced::default();
    }

    /// Resynchronizes the places that are out of sync. A place continues from its position in Redis if that equals
    /// `all_progress`, or is ahead of it by rows that may be shown early. Otherwise, with `may_begin`, a new
    /// incarnation of the place begins. Call it only while the checkpoints in Postgres are this projector's own.
    /// Partitions of a cluster that do not answer stay out of sync.
    pub(crate) async fn resume(
        &mut self,
        share: &Share,
        (all_progress, parked): (&[Progress], &Parked),
        may_begin: bool,
    ) -> Result<Resumed, CacheError> {
        let known = self.step.take().map(|step| step.shown).unwrap_or_default();
        let places: Vec<_> = share.places().collect();
        let lost: Vec<_> = places.iter().copied().filter(|place| !known.contains_key(place)).collect();
        if !self.connection.is_cluster() {
            // An older build would continue to serve these keys.
            () = redis::cmd("UNLINK").arg(&self.keys.of_older_builds()).query_async(&mut self.connection).await?;
        }
        let Found { mut positions, mut away } = self.find(&lost, Some(SHOW)).await;
        let (partitions, looked) = (all_progress.len() as u32, Instant::now());
        let mut step = Step { shown: known, stored: HashMap::new(), places, partitions, looked };
        step.stored.extend(step.places.iter().map(|place| (*place, checkpoint(all_progress, *place).offset)));
        let (mut begun, mut noted, mut announced) = (Vec::new(), Vec::new(), Vec::new());
        for place in lost.into_iter().filter(|(_, partition)| !away.contains_key(partition)) {
            let wanted = checkpoint(all_progress, place);
            let stands = positions.get(&place).and_then(|text| Shown::parse(text));
            let is_held = |stands: &Shown| self.held.get(&place) == Some(&stands.making.incarnation);
            let is_early = is_early(place, parked, partitions);
            let is_there = |stands: &Shown| {
                let making = Making { incarnation: stands.making.incarnation, ..wanted.making };
                let is_at = stands.offset == wanted.offset && stands.hash.is_none_or(|hash| Some(hash) == wanted.hash);
                // A row may have been shown before its record was parked. If a feed has no rows in Redis, nothing moves
                // its position.
                let may_be_at = !place.0.has_rows_in_redis() || is_at && (is_early || is_held(stands));
                // No position can be ahead of a log that has just begun.
                let may_be_ahead = is_early && stands.hash.is_some() && (is_held(stands) || wanted.offset >= 0);
                stands.making == making && (may_be_at || stands.offset > wanted.offset && may_be_ahead)
            };
            if let Some(stands) = stands.filter(is_there) {
                if let Some(hash) = stands.hash.filter(|_| stands.offset > wanted.offset && !is_held(&stands)) {
                    announced.push((place, stands.offset, hash));
                } else if stands.hash.is_none() {
                    // The build that wrote this position did not record which rows are ahead of Postgres.
                    let (feed, expected, shown) = (place.0, stands.to_string(), stands);
                    noted
                        .push((place.1, Position { feed, expected, shown, moves: false, stored: Some(stands.offset) }));
                }
                step.shown.insert(place, stands);
            } else if may_begin {
                begun.push((place, positions.remove(&place).unwrap_or_default(), wanted));
            } else {
                return Ok(Resumed::NotYet);
            }
        }
        let outcome = self.begin(&mut step, &begun, noted).await;
        self.announced.add(announced);
        let own = step.shown.iter().filter(|(place, _)| !self.announced.contains(**place));
        self.held.extend(own.map(|(place, shown)| (*place, shown.making.incarnation)));
        self.step = Some(step);
        outcome?;
        match away.pop_first() {
            _ if !begun.is_empty() => Ok(Resumed::Anew(begun.len())),
            Some((_, error)) => Err(CacheError::Call(error)),
            None => Ok(Resumed::AsItStood),
        }
    }

    /// Begins incarnations of places whose position is still the expected one. `noted` are positions that do not move
    /// and whose rows are all in Postgres.
    async fn begin(
        &mut self,
        step: &mut Step,
        begun: &[(Place, String, Shown)],
        noted: Vec<(u32, Position)>,
    ) -> Result<(), CacheError> {
        let (mut pipelines, whole) = (Pipelines::default(), Turn { is_first: true, is_last: true });
        for ((feed, partition), expected, shown) in begun {
            let (expected, stored) = (expected.clone(), Some(shown.offset));
            let positions = [Position { feed: *feed, expected, shown: *shown, moves: true, stored }];
            self.call_show(pipelines.of(*partition), *partition, (&positions, &[]), whole);
        }
        for (partition, position) in noted {
            self.call_show(pipelines.of(partition), partition, (&[position], &[]), whole);
        }
        let mut answers = pipelines.send::<u64>(&self.connection, RESPONSE_TIMEOUT).await;
        let mut outcome = Ok(());
        for (place @ (_, partition), _, shown) in begun {
            match answers.get_mut(partition).expect("each was sent") {
                Ok(answers) => match answers.remove(0) {
                    0 => drop(step.shown.insert(*place, *shown)),
                    _ => outcome = Err(CacheError::Mixed(name(*place))),
                },
                Err(error) => outcome = Err(CacheError::Call(error.clone())),
            }
        }
        outcome
    }

    /// Checks, once a second, that the positions are still those that this projector wrote. Redis may have been
    /// flushed, or another process may have begun an incarnation.
    pub(crate) async fn verify(&mut self) -> Result<(), CacheError> {
        let Some(step) = self.step.as_ref().filter(|step| step.looked.elapsed() >= VERIFY_EVERY) else { return Ok(()) };
        let places: Vec<_> = step.shown.keys().copied().collect();
        let Found { positions, away } = self.find(&places, None).await;
        let Some(step) = &mut self.step else { return Ok(()) };
        step.looked = Instant::now();
        // A timeout proves nothing: the next check or write will detect a change.
        let is_lost = |(place, shown): (&Place, &Shown)| {
            !away.contains_key(&place.1) && positions.get(place).is_none_or(|text| *text != shown.to_string())
        };
        let lost: Vec<_> = step.shown.iter().filter(|entry| is_lost(*entry)).map(|(place, _)| *place).collect();
        step.lose(&lost)
    }

    /// Reads the positions of places, and returns them with the partitions that did not answer. `script` is loaded on
    /// the servers that hold them.
    async fn find(&self, places: &[Place], script: Option<&str>) -> Found {
        let mut feeds = BTreeMap::<u32, Vec<FeedId>>::new();
        for (feed, partition) in places {
            feeds.entry(*partition).or_default().push(*feed);
        }
        let mut pipelines = Pipelines::default();
        for (partition, feeds) in &feeds {
            let pipeline = pipelines.of(*partition);
            if let Some(script) = script {
                pipeline.cmd("SCRIPT").arg("LOAD").arg(script).ignore();
            }
            pipeline
                .cmd("MGET")
                .arg(feeds.iter().map(|feed| self.keys.shown(feed.name(), *partition)).collect::<Vec<_>>());
        }
        let mut found = Found::default();
        for (partition, answers) in pipelines.send::<Vec<Option<String>>>(&self.connection, LOOK_WITHIN).await {
            match answers {
                Ok(answers) => {
                    let values = feeds[&partition].iter().zip(answers.into_iter().flatten());
                    found.positions.extend(values.filter_map(|(feed, value)| Some(((*feed, partition), value?))));
                }
                Err(error) => drop(found.away.insert(partition, error)),
            }
        }
        found
    }

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
                let call = (&positions[..], chunk.unwrap_or_default());
                self.call_show(pipelines.of(partition), partition, call, turn);
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
                match others >> number & 1 {
                    0 => drop(step.shown.insert((feed, partition), shown)),
                    _ => lost.push((feed, partition)),
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
        for Advance { place: (feed, partition), to, .. } in advances {
            let words = news.entry(*partition).or_insert_with(|| partition.to_string());
            write!(words, " {}{STORED}={to}", feed.name()).expect("a string takes all");
        }
        for words in news.into_values() {
            pipelines.news().publish(self.keys.news(), words).ignore();
        }
    }

    /// Deletes the positions of places, which declares their rows in Redis stale. New incarnations begin later.
    pub(crate) async fn forget(&mut self, places: &[Place]) -> Result<(), CacheError> {
        let names: Vec<_> = places.iter().map(|(feed, at)| self.keys.shown(feed.name(), *at)).collect();
        if let Some(step) = &mut self.step {
            step.shown.retain(|place, _| !places.contains(place));
        }
        self.held.retain(|place, _| !places.contains(place));
        self.announced.forget(places);
        Ok(redis::cmd("DEL").arg(names).query_async(&mut self.connection).await?)
    }

    /// Returns, by partition, the offsets at which the previous projector's positions are to be compared with the fold.
    /// No batch may be folded across them.
    pub(crate) fn announced(&self, partitions: u32) -> Option<Vec<i64>> {
        self.announced.until(partitions)
    }

    /// Returns the places whose announced position proved wrong, see [`Announced::contradicted`].
    pub(crate) fn contradicted(&mut self, all_progress: &[Progress]) -> Vec<Place> {
        self.announced.contradicted(all_progress)
    }

    /// Returns the rows of positions that move, by partition, each with the index of its view's position.
    fn rows(
        &self,
        partitions: u32,
        all: &PerView<Rows>,
        positions: &BTreeMap<u32, Vec<Position>>,
    ) -> HashMap<u32, Vec<(usize, NewRow)>> {
        let mut rows: HashMap<u32, Vec<_>> = HashMap::new();
        for view in StoredView::all() {
            let Source::Aggregate(fold) = view.view().source else { continue };
            for (key, (version, data)) in &all[view] {
                let partition = aggregate::partition(fold.aggregate, key, partitions);
                let moves = |position: &Position| position.feed == FeedId::View(view) && position.moves;
                let Some(number) = positions.get(&partition).and_then(|all| all.iter().position(moves)) else {
                    continue;
                };
                let incarnation = positions[&partition][number].shown.making.incarnation;
                let row = self.keys.row(partition, incarnation, view, key);
                let data = serde_json::to_string(data).expect("rows hold nothing that JSON cannot");
                let value = value(*version, &[], row_body(key, *version, &data).as_bytes());
                rows.entry(partition).or_default().push((number, (row, *version, value)));
            }
        }
        rows
    }

    /// Adds one of a batch's script calls to the pipeline. Between the first and the last call, no reader may read or
    /// fill in a row: a row of this batch might be evicted, and an older one be filled in.
    fn call_show(
        &self,
        pipeline: &mut Pipeline,
        partition: u32,
        (positions, rows): (&[Position], &[(usize, NewRow)]),
        turn: Turn,
    ) {
        let call = pipeline.cmd("EVALSHA").arg(&self.script).arg(2 * positions.len() + rows.len());
        for Position { feed, .. } in positions {
            call.arg(self.keys.shown(feed.name(), partition));
        }
        for Position { feed, .. } in positions {
            call.arg(self.keys.ahead(feed.name(), partition));
        }
        for (_, (key, ..)) in rows {
            call.arg(key);
        }
        call.arg(self.keys.news()).arg(partition).arg(positions.len()).arg(ROW_TTL_SECS);
        for Position { feed, expected, shown, moves, stored } in positions {
            let between = if *moves { format!("{expected}+") } else { expected.clone() };
            let next = if turn.is_last { shown.to_string() } else { between.clone() };
            call.arg(feed.name()).arg(if turn.is_first { expected } else { &between }).arg(next).arg(shown.offset);
            call.arg(stored.filter(|_| turn.is_last || !*moves).map_or_else(String::new, |stored| stored.to_string()));
        }
        for (number, (_, version, value)) in rows {
            call.arg(number + 1).arg(*version).arg(value);
        }
    }
}

/// The place of a script call within its batch.
#[derive(Clone, Copy)]
struct Turn {
    is_first: bool,
    is_last: bool,
}

/// Returns the position of a new incarnation of a place, at its checkpoint.
fn checkpoint(all_progress: &[Progress], (feed, partition): Place) -> Shown {
    let Progress { generations, revisions, readers, tallies, .. } = &all_progress[partition as usize];
    let (generation, revision) =
        (generations[feed].cast_unsigned(), u32::try_from(revisions[feed]).unwrap_or(u32::MAX));
    Shown {
        making: Making { incarnation: rand::random(), generation, revision },
        offset: readers[feed].next_offset - 1,
        hash: Some(tallies[feed].hash),
    }
}
