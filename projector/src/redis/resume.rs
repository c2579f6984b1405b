//! Brings Redis back in sync with the checkpoints, and verifies that it still is.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use chassis::redis::{Pipelines, RESPONSE_TIMEOUT};
use redis::RedisError;
use schemas::cache::{Making, SHOW, Shown};
use schemas::feeds::FeedId;

use super::error::CacheError;
use super::show::Turn;
use super::step::{Position, Step};
use super::{Cache, LOOK_WITHIN, is_early};
use crate::fold::Progress;
use crate::parked::Parked;
use crate::share::{Place, Share};

/// Interval between checks that the positions in Redis are still those that this projector wrote.
const VERIFY_EVERY: Duration = Duration::from_secs(1);

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

/// The positions found in Redis, and the partitions whose servers did not answer.
#[derive(Default)]
struct Found {
    positions: HashMap<Place, String>,
    away: BTreeMap<u32, RedisError>,
}

impl Cache {
    /// Resynchronizes the places that are out of sync. A place continues from its position in Redis if that equals
    /// `all_progress`, or is ahead of it by rows that may be shown early. Otherwise, with `may_begin`, a new
    /// incarnation of the place begins. Call it only while the checkpoints in Postgres are this projector's own.
    /// Partitions of a cluster that do not answer stay out of sync.
    pub(crate) async fn resume(
        &mut self,
        share: &Share,
        all_progress: &[Progress],
        parked: &Parked,
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
        for place in lost.into_iter().filter(|place| !away.contains_key(&place.partition)) {
            let wanted = checkpoint(all_progress, place);
            let stands = positions.get(&place).and_then(|text| Shown::parse(text));
            let is_held = |stands: &Shown| self.held.get(&place) == Some(&stands.making.incarnation);
            let is_early = is_early(place, parked, partitions);
            let is_there = |stands: &Shown| {
                let making = Making { incarnation: stands.making.incarnation, ..wanted.making };
                let is_at = stands.offset == wanted.offset && stands.hash.is_none_or(|hash| Some(hash) == wanted.hash);
                // A row may have been shown before its record was parked. If a feed has no rows in Redis, nothing moves
                // its position.
                let may_be_at = !place.feed.has_rows_in_redis() || is_at && (is_early || is_held(stands));
                // No position can be ahead of a log that has just begun.
                let may_be_ahead = is_early && stands.hash.is_some() && (is_held(stands) || wanted.offset >= 0);
                stands.making == making && (may_be_at || stands.offset > wanted.offset && may_be_ahead)
            };
            if let Some(stands) = stands.filter(is_there) {
                if let Some(hash) = stands.hash.filter(|_| stands.offset > wanted.offset && !is_held(&stands)) {
                    announced.push((place, stands.offset, hash));
                } else if stands.hash.is_none() {
                    // The build that wrote this position did not record which rows are ahead of Postgres.
                    let (feed, expected, shown) = (place.feed, stands.to_string(), stands);
                    noted.push((
                        place.partition,
                        Position { feed, expected, shown, moves: false, stored: Some(stands.offset) },
                    ));
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
        for (Place { feed, partition }, expected, shown) in begun {
            let (expected, stored) = (expected.clone(), Some(shown.offset));
            let positions = [Position { feed: *feed, expected, shown: *shown, moves: true, stored }];
            self.call_show(pipelines.of(*partition), *partition, &positions, &[], whole);
        }
        for (partition, position) in noted {
            self.call_show(pipelines.of(partition), partition, &[position], &[], whole);
        }
        let mut answers = pipelines.send::<u64>(&self.connection, RESPONSE_TIMEOUT).await;
        let mut outcome = Ok(());
        for (place, _, shown) in begun {
            match answers.get_mut(&place.partition).expect("each was sent") {
                Ok(answers) => match answers.remove(0) {
                    0 => drop(step.shown.insert(*place, *shown)),
                    _ => outcome = Err(CacheError::Mixed(place.to_string())),
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
            !away.contains_key(&place.partition) && positions.get(place).is_none_or(|text| *text != shown.to_string())
        };
        let lost: Vec<_> = step.shown.iter().filter(|entry| is_lost(*entry)).map(|(place, _)| *place).collect();
        step.lose(&lost)
    }

    /// Reads the positions of places, and returns them with the partitions that did not answer. `script` is loaded on
    /// the servers that hold them.
    async fn find(&self, places: &[Place], script: Option<&str>) -> Found {
        let mut feeds = BTreeMap::<u32, Vec<FeedId>>::new();
        for Place { feed, partition } in places {
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
                    found
                        .positions
                        .extend(values.filter_map(|(feed, value)| Some((Place { feed: *feed, partition }, value?))));
                }
                Err(error) => drop(found.away.insert(partition, error)),
            }
        }
        found
    }
}

/// Returns the position of a new incarnation of a place, at its checkpoint.
fn checkpoint(all_progress: &[Progress], Place { feed, partition }: Place) -> Shown {
    let Progress { generations, revisions, readers, tallies, .. } = &all_progress[partition as usize];
    let (generation, revision) =
        (generations[feed].cast_unsigned(), u32::try_from(revisions[feed]).unwrap_or(u32::MAX));
    Shown {
        making: Making { incarnation: rand::random(), generation, revision },
        offset: readers[feed].next_offset - 1,
        hash: Some(tallies[feed].hash),
    }
}
