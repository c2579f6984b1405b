//! The views in Redis: each partition's rows with the positions that cover them.
//!
//! A row that one aggregate feeds is a fold of counted records, and right at its version. So it is shown as soon as it is
//! folded, while Postgres takes it. Which rows Postgres may lack Redis is told, so that no older one is filled in.
//!
//! Invariant: whatever goes wrong here (no answer, a position that somebody else moved) puts a view of a partition out of
//! step, and then nothing more of it is written until [`Cache::resume`] finds its position to be right, or begins a new
//! incarnation of it.

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
use crate::isolate::Parked;
use crate::projector::Share;
pub(crate) use advance::Advance;
use announced::Announced;
pub(crate) use change::{await_revision, change_position, declare_stale};
use step::{Position, Step};

/// Rows in one call of a script: it blocks Redis while it runs.
pub(crate) const MAX_ROWS_A_CALL: usize = 500;
/// Between looks at what others write, and at this projector's own positions while it writes nothing.
const VERIFY_EVERY: Duration = Duration::from_secs(1);
/// For such a look: folding waits for it.
const LOOK_WITHIN: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("Redis did not do what was asked")]
    Call(#[from] RedisError),
    #[error("the positions of {0} are not what this projector wrote")]
    Mixed(String),
}

pub(crate) struct Cache {
    connection: Connection,
    keys: Keys,
    /// The script that shows a batch, by its name on the servers.
    script: String,
    /// `None` while out of step everywhere.
    step: Option<Step>,
    /// The incarnations that were in step since [`Self::lose_step`].
    held: HashMap<Place, u64>,
    announced: Announced,
}

/// How a cache got back in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resumed {
    AsItStood,
    /// New incarnations were begun of so many places.
    Anew(usize),
    /// It did not: Redis does not show the share's checkpoints, or other generations.
    NotYet,
}

/// A view, or the journal, in a partition.
pub(crate) type Place = (FeedId, u32);

/// Tells whether rows are shown before Postgres has them: those that one aggregate feeds, while nothing of their place is
/// parked. What is parked may be folded or given up at any moment, of which a projector knows by its next commit.
pub(crate) fn is_early((feed, partition): Place, parked: &Parked, partitions: u32) -> bool {
    feed.has_rows_in_redis() && !parked.are_in((feed, partition), partitions)
}

/// What stands at positions, and the partitions that did not answer.
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

    /// Returns what else may write there, beside the rows and their positions.
    pub(crate) fn connection(&self) -> (Connection, Keys) {
        (self.connection.clone(), self.keys.clone())
    }

    pub(crate) fn is_in_step(&self) -> bool {
        self.step.as_ref().is_some_and(|step| step.shown.len() == step.places.len())
    }

    /// Another projector may have written since.
    pub(crate) fn lose_step(&mut self) {
        self.step = None;
        self.held.clear();
        self.announced = Announced::default();
    }

    /// Goes on with what stands in Redis of each place that is out of step, if that is exactly where `all_progress` say, or ahead
    /// of it by rows that may be shown early. If not, and `may_begin`, a new incarnation of the place begins there. Call it only
    /// while the checkpoints in Postgres are this projector's own. Partitions of a cluster that do not answer stay out of step.
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
            // An older build would go on serving them.
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
                // A row that was parked may have been shown before. Where there are no rows, nothing moves the position.
                let may_be_at = !place.0.has_rows_in_redis() || is_at && (is_early || is_held(stands));
                // There is nothing that it could be ahead of in a log that has just begun.
                let may_be_ahead = is_early && stands.hash.is_some() && (is_held(stands) || wanted.offset >= 0);
                stands.making == making && (may_be_at || stands.offset > wanted.offset && may_be_ahead)
            };
            if let Some(stands) = stands.filter(is_there) {
                if let Some(hash) = stands.hash.filter(|_| stands.offset > wanted.offset && !is_held(&stands)) {
                    announced.push((place, stands.offset, hash));
                } else if stands.hash.is_none() {
                    // The build that left it there noted no rows.
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

    /// Begins incarnations of places at which `expected` is found. `noted`: positions that stay, of which Postgres has all.
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

    /// Looks, once a second, whether Redis still shows what this projector wrote: it may have been emptied, or somebody else
    /// may have begun an incarnation.
    pub(crate) async fn verify(&mut self) -> Result<(), CacheError> {
        let Some(step) = self.step.as_ref().filter(|step| step.looked.elapsed() >= VERIFY_EVERY) else { return Ok(()) };
        let places: Vec<_> = step.shown.keys().copied().collect();
        let Found { positions, away } = self.find(&places, None).await;
        let Some(step) = &mut self.step else { return Ok(()) };
        step.looked = Instant::now();
        // No answer proves nothing: the next look or write will tell.
        let is_lost = |(place, shown): (&Place, &Shown)| {
            !away.contains_key(&place.1) && positions.get(place).is_none_or(|text| *text != shown.to_string())
        };
        let lost: Vec<_> = step.shown.iter().filter(|entry| is_lost(*entry)).map(|(place, _)| *place).collect();
        step.lose(&lost)
    }

    /// Returns what stands at these positions, and which partitions did not answer. `script`: to be known to the servers that
    /// have them.
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

    /// Shows rows, in one round trip. What Redis shows of them already is left out; where it is committed, readers are told that
    /// Postgres has it, and Redis by the next call that moves the position.
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
            // News that were lost cost nothing but time: whoever waits for Postgres looks at it, too.
            let Some(positions) = calls.remove(&partition) else { continue };
            // A position at which something else was found is told by its bit.
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

    /// Tells readers how far Postgres is.
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

    /// Lets go of places: what Redis has of them is declared stale, and begins anew.
    pub(crate) async fn forget(&mut self, places: &[Place]) -> Result<(), CacheError> {
        let names: Vec<_> = places.iter().map(|(feed, at)| self.keys.shown(feed.name(), *at)).collect();
        if let Some(step) = &mut self.step {
            step.shown.retain(|place, _| !places.contains(place));
        }
        self.held.retain(|place, _| !places.contains(place));
        self.announced.forget(places);
        Ok(redis::cmd("DEL").arg(names).query_async(&mut self.connection).await?)
    }

    /// Returns the offsets at which positions from before are to be compared with what is folded, by partition: nothing is to
    /// be folded in one go across them.
    pub(crate) fn announced(&self, partitions: u32) -> Option<Vec<i64>> {
        self.announced.until(partitions)
    }

    /// See [`Announced::contradicted`].
    pub(crate) fn contradicted(&mut self, all_progress: &[Progress]) -> Vec<Place> {
        self.announced.contradicted(all_progress)
    }

    /// Returns rows that one aggregate feeds, with the number of their view's position, where that moves, by partition.
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

    /// One call of a batch. Between the first one and the last, nobody may read or fill in a row: one that is put might be
    /// evicted, and one from before the batch take its place.
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

/// Which of a batch's calls one is.
#[derive(Clone, Copy)]
struct Turn {
    is_first: bool,
    is_last: bool,
}

fn name((feed, partition): Place) -> String {
    format!("{} in partition {partition}", feed.name())
}

/// Returns what Redis shows of a place that begins at its checkpoint.
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
