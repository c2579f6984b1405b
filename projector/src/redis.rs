//! The views in Redis: written after the commit, each partition's rows with the positions that cover them.
//!
//! Invariant: whatever goes wrong here (no answer, a position that somebody else moved) puts a view of a partition out of
//! step, and then nothing more of it is written until [`Cache::resume`] finds its position to be right, or begins a new
//! incarnation of it.

pub(crate) mod fitness;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use chassis::env::Secret;
use chassis::redis::RedisSetupError;
use redis::aio::ConnectionManager;
use redis::{Pipeline, RedisError};
use schemas::aggregate;
use schemas::cache::{Keys, Making, ROW_TTL_SECS, SHOW, Shown, value};
use schemas::feeds::{FeedId, StoredView};
use schemas::views::{Source, row_body};

use crate::fold::{Changes, Standing};
use crate::postgres::Move;
use crate::projector::Share;

/// Rows in one call of a script: it blocks Redis while it runs.
pub(crate) const MAX_ROWS_A_CALL: usize = 500;
/// Between looks at what others write, and at this projector's own positions while it writes nothing.
const VERIFY_EVERY: Duration = Duration::from_secs(1);
/// How often a position is changed again that somebody else moves meanwhile.
const CHANGE_TRIES: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("Redis did not do what was asked")]
    Call(#[from] RedisError),
    #[error("the positions of {0} are not what this projector wrote")]
    Mixed(String),
}

pub(crate) struct Cache {
    connection: ConnectionManager,
    keys: Keys,
    /// `None` while out of step everywhere.
    step: Option<Step>,
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
type Place = (FeedId, u32);

/// What this projector knows of Redis while nobody else writes its share there.
struct Step {
    /// As this projector wrote them; without those that are out of step.
    shown: HashMap<Place, Shown>,
    /// All of the share.
    places: Vec<Place>,
    partitions: u32,
    looked: Instant,
    /// The script that shows a batch, by its name on the server.
    script: String,
}

/// A row to write: key, version, value.
type NewRow = (String, u64, Vec<u8>);

impl Cache {
    pub(crate) fn connect(url: &Secret, prefix: &str) -> Result<Self, RedisSetupError> {
        Ok(Self { connection: chassis::redis::connect(url)?, keys: Keys::new(prefix), step: None })
    }

    /// Returns what else may write there, beside the rows and their positions.
    pub(crate) fn connection(&self) -> (ConnectionManager, Keys) {
        (self.connection.clone(), self.keys.clone())
    }

    pub(crate) fn is_in_step(&self) -> bool {
        self.step.as_ref().is_some_and(|step| step.shown.len() == step.places.len())
    }

    /// Another projector may have written since.
    pub(crate) fn lose_step(&mut self) {
        self.step = None;
    }

    /// Goes on with what stands in Redis of each place that is out of step, if that is exactly where `standings` say. If not,
    /// and `may_begin`, a new incarnation of the place begins there. Call it only while the checkpoints in Postgres are this
    /// projector's own.
    pub(crate) async fn resume(
        &mut self,
        share: &Share,
        standings: &[Standing],
        may_begin: bool,
    ) -> Result<Resumed, CacheError> {
        let known = self.step.take().map(|step| step.shown).unwrap_or_default();
        let places: Vec<_> = share.places().collect();
        let script = redis::cmd("SCRIPT").arg("LOAD").arg(SHOW).query_async(&mut self.connection).await?;
        // An older build would go on serving them.
        () = redis::cmd("UNLINK").arg(&self.keys.of_older_builds()).query_async(&mut self.connection).await?;
        let mut found = self.read(&places).await?;
        let (partitions, looked) = (standings.len() as u32, Instant::now());
        let mut step = Step { shown: known.clone(), places, partitions, looked, script };
        let mut begun = Vec::new();
        for place in step.places.clone().into_iter().filter(|place| !known.contains_key(place)) {
            let wanted = checkpoint(standings, place);
            let stands = found.get(&place).and_then(|text| Shown::parse(text));
            let is_there = |stands: &Shown| {
                let making = Making { incarnation: stands.making.incarnation, ..wanted.making };
                *stands == Shown { making, ..wanted }
            };
            if let Some(stands) = stands.filter(is_there) {
                step.shown.insert(place, stands);
            } else if may_begin {
                begun.push((place, found.remove(&place).unwrap_or_default(), wanted));
            } else {
                return Ok(Resumed::NotYet);
            }
        }
        self.begin(&mut step, &begun).await?;
        self.step = Some(step);
        Ok(if begun.is_empty() { Resumed::AsItStood } else { Resumed::Anew(begun.len()) })
    }

    /// Begins incarnations of places at which `expected` is found.
    async fn begin(&mut self, step: &mut Step, begun: &[(Place, String, Shown)]) -> Result<(), CacheError> {
        if begun.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        for ((feed, partition), expected, shown) in begun {
            let positions = [Position { feed: *feed, expected: expected.clone(), shown: *shown }];
            self.call_show(
                &mut pipe,
                &step.script,
                *partition,
                (&positions, &[]),
                Turn { is_first: true, is_last: true },
            );
        }
        let answers: Vec<u64> = pipe.query_async(&mut self.connection).await?;
        for ((place, _, shown), answer) in begun.iter().zip(answers) {
            if answer != 0 {
                return Err(CacheError::Mixed(name(*place)));
            }
            step.shown.insert(*place, *shown);
        }
        Ok(())
    }

    /// Looks, once a second, whether Redis still shows what this projector wrote: it may have been emptied, or somebody else
    /// may have begun an incarnation.
    pub(crate) async fn verify(&mut self) -> Result<(), CacheError> {
        let Some(step) = self.step.as_ref().filter(|step| step.looked.elapsed() >= VERIFY_EVERY) else { return Ok(()) };
        let places: Vec<_> = step.shown.keys().copied().collect();
        // No answer proves nothing: the next look or write will tell.
        let Ok(found) = self.read(&places).await else { return Ok(()) };
        let Some(step) = &mut self.step else { return Ok(()) };
        step.looked = Instant::now();
        let is_lost = |(place, shown): (&Place, &Shown)| found.get(place).is_none_or(|text| *text != shown.to_string());
        let lost: Vec<_> = step.shown.iter().filter(|entry| is_lost(*entry)).map(|(place, _)| *place).collect();
        step.lose(&lost)
    }

    /// Returns what is found at these positions.
    async fn read(&mut self, places: &[Place]) -> Result<HashMap<Place, String>, CacheError> {
        let mut pipe = redis::pipe();
        for (feed, partition) in places {
            pipe.get(self.keys.shown(feed.name(), *partition));
        }
        let found: Vec<Option<String>> = pipe.query_async(&mut self.connection).await?;
        Ok(places.iter().zip(found).filter_map(|(place, value)| Some((*place, value?))).collect())
    }

    /// Shows a committed batch, in one round trip. What Redis shows of it already is left out.
    pub(crate) async fn show(&mut self, changes: &Changes, moves: &[Move]) -> Result<(), CacheError> {
        let verified = self.verify().await;
        let Some(mut step) = self.step.take() else { return verified };
        let mut pipe = redis::pipe();
        let mut rows = self.rows(&step, changes);
        let mut calls = Vec::new();
        let (moving, mut lost) = step.moving(moves);
        for (partition, positions) in moving {
            let rows = rows.remove(&partition).unwrap_or_default();
            let rows: Vec<_> =
                rows.into_iter().filter_map(|(view, row)| Some((place_in(&positions, view)?, row))).collect();
            let chunks = rows.chunks(MAX_ROWS_A_CALL).map(Some).chain(rows.is_empty().then_some(None));
            let count = rows.len().div_ceil(MAX_ROWS_A_CALL).max(1);
            for (number, chunk) in chunks.enumerate() {
                let turn = Turn { is_first: number == 0, is_last: number + 1 == count };
                self.call_show(&mut pipe, &step.script, partition, (&positions, chunk.unwrap_or_default()), turn);
            }
            calls.push((partition, positions, count));
        }
        let answers: Vec<u64> =
            if calls.is_empty() { Vec::new() } else { pipe.query_async(&mut self.connection).await? };
        let mut answers = answers.into_iter();
        for (partition, positions, count) in calls {
            let others = answers.by_ref().take(count).fold(0, |all, one| all | one);
            for (number, Position { feed, shown, .. }) in positions.into_iter().enumerate() {
                match others >> number & 1 {
                    0 => drop(step.shown.insert((feed, partition), shown)),
                    _ => lost.push((feed, partition)),
                }
            }
        }
        let shown = step.lose(&lost);
        self.step = Some(step);
        verified.and(shown)
    }

    /// Returns rows that one aggregate feeds, by partition.
    fn rows(&self, step: &Step, changes: &Changes) -> HashMap<u32, Vec<(StoredView, NewRow)>> {
        let mut rows: HashMap<u32, Vec<_>> = HashMap::new();
        for view in StoredView::all() {
            let Source::Aggregate(fold) = view.view().source else { continue };
            for (key, (version, data)) in &changes.rows[view] {
                let partition = aggregate::partition(fold.aggregate, key, step.partitions);
                let Some(shown) = step.shown.get(&(FeedId::View(view), partition)) else { continue };
                let row = self.keys.row(partition, shown.making.incarnation, view, key);
                let data = serde_json::to_string(data).expect("rows hold nothing that JSON cannot");
                let value = value(*version, &[], row_body(key, *version, &data).as_bytes());
                rows.entry(partition).or_default().push((view, (row, *version, value)));
            }
        }
        rows
    }

    /// One call of a batch. Between the first one and the last, nobody may read or fill in a row: one that is put might be
    /// evicted, and one from before the batch take its place.
    fn call_show(
        &self,
        pipe: &mut Pipeline,
        script: &str,
        partition: u32,
        (positions, rows): (&[Position], &[(usize, NewRow)]),
        turn: Turn,
    ) {
        let call = pipe.cmd("EVALSHA").arg(script).arg(positions.len() + rows.len());
        for Position { feed, .. } in positions {
            call.arg(self.keys.shown(feed.name(), partition));
        }
        for (_, (key, ..)) in rows {
            call.arg(key);
        }
        call.arg(self.keys.news()).arg(partition).arg(positions.len()).arg(ROW_TTL_SECS);
        for Position { feed, expected, shown } in positions {
            let between = format!("{expected}+");
            let next = if turn.is_last { shown.to_string() } else { between.clone() };
            call.arg(feed.name()).arg(if turn.is_first { expected } else { &between }).arg(next);
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

/// A position that a script moves: from what is expected there.
struct Position {
    feed: FeedId,
    expected: String,
    shown: Shown,
}

impl Step {
    /// Returns what moves in each partition, of what is in step there, and the places that have missed a batch.
    fn moving(&self, moves: &[Move]) -> (BTreeMap<u32, Vec<Position>>, Vec<Place>) {
        let (mut moving, mut missed) = (BTreeMap::<u32, Vec<Position>>::new(), Vec::new());
        for Move { name, partition, from, to, .. } in moves {
            let Some(feed) = FeedId::named(name) else { continue };
            let Some(stands) = self.shown.get(&(feed, *partition)) else { continue };
            let shown = Shown { offset: to.next_offset - 1, ..*stands };
            if stands.offset == from.next_offset - 1 {
                moving.entry(*partition).or_default().push(Position { feed, expected: stands.to_string(), shown });
            } else if stands.offset < shown.offset {
                missed.push((feed, *partition));
            }
        }
        (moving, missed)
    }

    fn lose(&mut self, places: &[Place]) -> Result<(), CacheError> {
        self.shown.retain(|place, _| !places.contains(place));
        match places {
            [] => Ok(()),
            [place] => Err(CacheError::Mixed(name(*place))),
            [place, others @ ..] => Err(CacheError::Mixed(format!("{} and {} more", name(*place), others.len()))),
        }
    }
}

fn name((feed, partition): Place) -> String {
    format!("{} in partition {partition}", feed.name())
}

fn place_in(positions: &[Position], view: StoredView) -> Option<usize> {
    positions.iter().position(|position| position.feed == FeedId::View(view))
}

/// Gives a place what `change` makes of its position; `false`: of what stands there it makes nothing.
pub(crate) async fn change_position(
    connection: &mut ConnectionManager,
    keys: &Keys,
    (feed, partition): Place,
    change: impl Fn(Shown) -> Option<Shown>,
) -> Result<bool, CacheError> {
    let (script, key) = (redis::Script::new(SHOW), keys.shown(feed.name(), partition));
    for _ in 0..CHANGE_TRIES {
        let stands: Option<String> = redis::cmd("GET").arg(&key).query_async(connection).await?;
        let Some(changed) = stands.as_deref().and_then(Shown::parse).and_then(&change) else { return Ok(false) };
        let mut call = script.key(&key);
        call.arg(keys.news()).arg(partition).arg(1).arg(ROW_TTL_SECS);
        call.arg(feed.name()).arg(stands.unwrap_or_default()).arg(changed.to_string());
        if call.invoke_async::<u64>(connection).await? == 0 {
            return Ok(true);
        }
    }
    Err(CacheError::Mixed(name((feed, partition))))
}

/// Declares stale what Redis has of a place, whose rows in Postgres have changed at the position where they were. Queries go
/// to Postgres until its projector begins a new incarnation.
pub(crate) async fn declare_stale(url: &Secret, prefix: &str, (feed, partition): Place) -> anyhow::Result<()> {
    let mut connection = chassis::redis::connect(url)?;
    let position = Keys::new(prefix).shown(feed.name(), partition);
    Ok(redis::cmd("DEL").arg(position).query_async(&mut connection).await?)
}

/// Returns what Redis shows of a place that begins at its checkpoint.
fn checkpoint(standings: &[Standing], (feed, partition): Place) -> Shown {
    let Standing { generations, revisions, readers, .. } = &standings[partition as usize];
    let (generation, revision) =
        (generations[feed].cast_unsigned(), u32::try_from(revisions[feed]).unwrap_or(u32::MAX));
    Shown {
        making: Making { incarnation: rand::random(), generation, revision },
        offset: readers[feed].next_offset - 1,
    }
}
