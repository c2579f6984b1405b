//! Progress of the views in Redis and in Postgres, and waiting for them to reach a token.
//!
//! Redis and Postgres progress independently, so each view has a position in both places, and a request that reads
//! Postgres waits for the position of Postgres.
//!
//! Invariant: positions of Postgres are lower bounds. Positions of Redis only show when a read is worthwhile: the
//! positions that an answer shows are those read together with it.

mod waiters;
mod offsets;
mod cached;
mod ends;
mod state;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use schemas::cache::{END, Making, News, Shown};
use schemas::feeds::{FeedId, PerView, StoredView};
use schemas::token::{LogId, Token};
use tokio::sync::Notify;

pub(crate) use ends::RedisClock;
use offsets::token_text;
pub(crate) use offsets::{Applied, Offsets, Shows, covers};
pub(crate) use waiters::MAX_WAITERS;

use cached::Cached;
use ends::{PastEnds, Written};
use state::State;
use waiters::{At, Waiters};

/// Time without confirmation of the positions after which answers from Redis carry an `Age`. Postgres is polled every
/// second, and a failed poll may take a few.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);

/// Interval at which a waiting request checks the end of the log.
const LOOK_FOR_THE_END_EVERY: Duration = Duration::from_secs(1);

/// Offset of a partition of which no record is shown yet.
pub(crate) const NOTHING: i64 = -1;

/// The log that the views are folded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    pub(crate) partitions: u32,
}

/// Positions of this log that tokens of the logs that it was grown from stand for, by the ID of the former log.
pub(crate) type FormerLogs = BTreeMap<String, BTreeMap<u32, i64>>;

/// Makings that name the rows of a view in Redis, by partition; `None` where Redis shows no rows.
pub(crate) type Makings = Arc<[Option<Making>]>;

/// Progress of one server.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Token of the records of the feed that the server shows; `None` if it shows none.
    pub(crate) applied: Option<String>,
    /// Lower bound of the age of the oldest record that the server does not show.
    pub(crate) behind: Option<Duration>,
}

/// The partitions that an answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    One(u32),
    All,
}

impl Scope {
    pub(crate) fn partition(self) -> Option<u32> {
        match self {
            Self::One(partition) => Some(partition),
            Self::All => None,
        }
    }
}

/// The places that may answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Places {
    Any,
    /// Redis does not hold the requested data.
    StoreAlone,
}

/// The place that a request is answered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Redis, with the makings and offsets that it is known to show of the feed.
    Cache {
        makings: Makings,
        offsets: Arc<[i64]>,
    },
    Store,
}

/// Reasons to stop waiting for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReached {
    /// The views did not catch up in time; `token` is the part of the requested positions that is visible.
    Behind {
        token: Option<String>,
    },
    TooManyWaiters,
    /// The token is beyond the end of the log, so it will never be reached.
    Ahead,
}

/// Positions of all feeds in both places, shared by all requests.
#[derive(Debug)]
pub(crate) struct Positions {
    begun: Instant,
    /// Time of the last checkpoints from Postgres or the last moved view in Redis, in ms since `begun`.
    confirmed_ms: AtomicU64,
    state: RwLock<State>,
    /// Latest generation of each stored view in the checkpoints or in a served row. It never goes back, so that the
    /// view's reported generation is never older than a row that a client has seen.
    generations: PerView<AtomicU32>,
    /// Set before the log is known.
    former_logs: OnceLock<FormerLogs>,
    waiters: Waiters,
    someone_waits: Notify,
    /// See [`Positions::doubt_cache`].
    cache_doubted: Notify,
}

impl Default for Positions {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            confirmed_ms: AtomicU64::default(),
            state: RwLock::default(),
            generations: [const { AtomicU32::new(1) }; StoredView::COUNT],
            former_logs: OnceLock::new(),
            waiters: Waiters::default(),
            someone_waits: Notify::default(),
            cache_doubted: Notify::default(),
        }
    }
}

impl Positions {
    /// Returns the log, or `None` until the projector has folded its first record and Postgres was read.
    pub(crate) fn log(&self) -> Option<Log> {
        self.read().log
    }

    /// Returns the latest known makings of a view in Redis.
    pub(crate) fn makings(&self, view: StoredView) -> Option<Makings> {
        Some(self.read().cache.as_ref()?.makings[FeedId::View(view)].clone())
    }

    /// Returns the furthest known position of either place, as a token.
    pub(crate) fn shown(&self, feed: FeedId) -> Option<String> {
        let state = self.read();
        token_text(state.log?.id, &state.furthest(feed)?, Scope::All)
    }

    /// Returns the number of records that another feed shows and this one does not. The end of the log is not
    /// considered.
    pub(crate) fn lag(&self, feed: FeedId) -> Option<u64> {
        let state = self.read();
        let feeds = FeedId::all().map(|feed| state.furthest(feed));
        let behind = feeds[feed].as_ref()?.iter().enumerate().map(|(partition, at)| {
            let furthest = feeds.iter().flatten().map(|feed| feed[partition]).max().unwrap_or(NOTHING);
            furthest.abs_diff(*at)
        });
        Some(behind.sum())
    }

    /// Returns the progress of Redis and of Postgres; `None` for a server whose positions are unknown.
    pub(crate) fn progress(&self, feed: FeedId) -> [Option<Progress>; 2] {
        let (state, now) = (self.read(), Instant::now());
        let of_server = |offsets: &[i64]| {
            let applied = state.log.and_then(|log| token_text(log.id, offsets, Scope::All));
            Progress { applied, behind: state.ends.as_ref().and_then(|ends| ends.behind(offsets, now)) }
        };
        let stored = state.store.as_ref().map(|store| of_server(store.of(feed)));
        [state.in_cache(feed).map(|offsets| of_server(offsets)), stored]
    }

    /// Returns how far Postgres is behind the log in a feed, by partition, where that is known: lower bounds of the age of
    /// the oldest record that it does not show.
    pub(crate) fn stored_behind(&self, feed: FeedId) -> Vec<(u32, Duration)> {
        let (state, now) = (self.read(), Instant::now());
        let (Some(store), Some(ends)) = (&state.store, &state.ends) else { return Vec::new() };
        let by_partition = (0..).zip(ends.behind_by_partition(store.of(feed), now));
        by_partition.filter_map(|(partition, behind)| Some((partition, behind?))).collect()
    }

    /// Returns the same of the checkpoints of another server, over all of their feeds and partitions.
    pub(crate) fn behind<'a>(&self, applied: impl IntoIterator<Item = Applied<'a>>) -> Option<Duration> {
        let (state, now) = (self.read(), Instant::now());
        let (log, ends) = (state.log?, state.ends.as_ref()?);
        let mut offsets = Offsets::none(log.partitions);
        offsets.advance(applied);
        FeedId::all().into_iter().filter_map(|feed| ends.behind(offsets.of(feed), now)).max()
    }

    /// Returns the place to read from without waiting.
    pub(crate) fn place(&self, feed: FeedId) -> Place {
        self.read().cached(feed, None).unwrap_or(Place::Store)
    }

    /// Waits until one of `places` shows the positions in the token, and returns it; Redis is preferred over Postgres.
    ///
    /// A token beyond the end of the log is refused as soon as an end is known that was read after the request arrived.
    /// Until then only a limited number of requests `from` the same address may wait.
    pub(crate) async fn reach(
        &self,
        feed: FeedId,
        places: Places,
        token: &Token,
        within: Duration,
        from: Option<IpAddr>,
    ) -> Result<Place, NotReached> {
        if let Some(place) = self.read().place(feed, places, token) {
            return Ok(place);
        }
        let arrived = Instant::now();
        let deadline = tokio::time::Instant::from_std(arrived) + within;
        let waiter = self.waiters.enter().ok_or(NotReached::TooManyWaiters)?;
        let mut unproven = None;
        self.someone_waits.notify_one();
        loop {
            let entry = {
                let state = self.read();
                if let Some(place) = state.place(feed, places, token) {
                    return Ok(place);
                }
                match state.is_written(token, arrived) {
                    Written::Yes => unproven = None,
                    Written::Never => return Err(NotReached::Ahead),
                    Written::Unknown if unproven.is_none() => {
                        unproven = Some(self.waiters.enter_from(from).ok_or(NotReached::TooManyWaiters)?);
                    }
                    Written::Unknown => {}
                }
                waiter.wait_for(state.missing(feed, places, token))
            };
            let until = deadline.min(tokio::time::Instant::now() + LOOK_FOR_THE_END_EVERY);
            if tokio::time::timeout_at(until, entry.woken()).await.is_err() && until == deadline {
                return Err(NotReached::Behind { token: self.read().reached_of(feed, places, token) });
            }
        }
    }

    pub(crate) fn waiters(&self) -> usize {
        self.waiters.count()
    }

    /// Waits until a request is waiting; Postgres should then be polled, in case no notification from Redis arrives.
    pub(crate) async fn someone_waits(&self) {
        while self.waiters() == 0 {
            self.someone_waits.notified().await;
        }
    }

    pub(crate) fn know_log(&self, log: Log, former: FormerLogs) {
        self.former_logs.get_or_init(|| former);
        self.write().log = Some(log);
    }

    /// Returns the positions of this log that a token of a former log names.
    pub(crate) fn in_former_log(&self, id: LogId) -> Option<&BTreeMap<u32, i64>> {
        self.former_logs.get()?.get(&id.to_string())
    }

    /// Returns the time since the positions were last confirmed, if it exceeds [`CONFIRMED_WITHIN`]: rows in Redis may
    /// be that old.
    pub(crate) fn age(&self) -> Option<Duration> {
        let confirmed = Duration::from_millis(self.confirmed_ms.load(Ordering::Relaxed));
        Some(self.begun.elapsed().saturating_sub(confirmed)).filter(|age| *age > CONFIRMED_WITHIN)
    }

    fn confirm(&self) {
        self.confirmed_ms.store(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Advances the positions of Postgres to checkpoints that were read at `now`.
    pub(crate) fn advance_store<'a>(&self, applied: impl IntoIterator<Item = Applied<'a>>, now: Instant) {
        self.confirm();
        let mut state = self.write();
        let Some(log) = state.log else { return };
        let moved = state.store.get_or_insert_with(|| Offsets::none(log.partitions)).advance(applied);
        state.raise_floor(now);
        drop(state);
        self.wake(At::Store, moved);
    }

    /// Records the generation of a view from the checkpoints in Postgres.
    pub(crate) fn know_generation(&self, view: &str, generation: u32) {
        if let Some(view) = StoredView::named(view) {
            self.note_generation(view, generation);
        }
    }

    /// Records the generation of a row that is about to be served.
    pub(crate) fn note_generation(&self, view: StoredView, generation: u32) {
        // Nearly always known already: a plain load keeps the cache line shared between readers.
        if self.generation(view) < generation {
            self.generations[view].fetch_max(generation, Ordering::Relaxed);
        }
    }

    pub(crate) fn generation(&self, view: StoredView) -> u32 {
        self.generations[view].load(Ordering::Relaxed)
    }

    /// Replaces the positions of Redis with freshly read ones.
    pub(crate) fn know_cache<'a>(&self, all: impl IntoIterator<Item = News<'a>>, clock: RedisClock) {
        let mut state = self.write();
        let Some(log) = state.log else { return };
        let mut cached = Cached::none(log.partitions, clock);
        let State { floor, ends, .. } = &mut *state;
        let ends = ends.get_or_insert_with(|| PastEnds::none(log.partitions, clock));
        ends.know_clock(clock);
        let moved: Vec<_> = all.into_iter().flat_map(|news| cached.take(&news, floor.as_ref(), ends)).collect();
        state.cache = Some(cached);
        drop(state);
        self.wake(At::Cache, moved);
    }

    /// Applies a notification from Redis. Returns `false` if the positions of Redis are unknown and must be read.
    pub(crate) fn advance_cache(&self, news: &News<'_>) -> bool {
        let mut state = self.write();
        let State { cache: Some(cache), floor, ends: Some(ends), .. } = &mut *state else { return false };
        let moved = cache.take(news, floor.as_ref(), ends);
        drop(state);
        if news.values.iter().any(|(name, _)| *name != END) {
            self.confirm();
        }
        self.wake(At::Cache, moved);
        let stored = |(view, offset)| Applied { view, partition: news.partition, offset };
        let mut stored = news.stored().map(stored).peekable();
        if stored.peek().is_some() {
            self.advance_store(stored, Instant::now());
        }
        true
    }

    /// Records the position that a read found for a view in a partition; `None` if this build cannot parse it.
    pub(crate) fn know_shown(&self, view: StoredView, partition: u32, shown: Option<Shown>) {
        let mut state = self.write();
        let State { cache: Some(cache), floor, .. } = &mut *state else { return };
        let moved = cache.know(FeedId::View(view), partition, shown, floor.as_ref());
        drop(state);
        self.wake(At::Cache, moved.into_iter().collect());
    }

    /// Returns whether the positions of Redis are known, so that it may answer.
    pub(crate) fn knows_cache(&self) -> bool {
        self.read().cache.is_some()
    }

    pub(crate) fn lose_cache(&self) {
        self.write().cache = None;
    }

    /// Stops reads from Redis, or from one of its partitions, after a failed request, until its positions are read
    /// again.
    pub(crate) fn doubt_cache(&self, partition: Option<u32>) {
        match (partition, &mut self.write().cache) {
            (Some(partition), Some(cache)) => cache.lose(partition),
            (_, cache) => *cache = None,
        }
        self.cache_doubted.notify_one();
    }

    pub(crate) async fn cache_doubted(&self) {
        self.cache_doubted.notified().await;
    }

    fn wake(&self, at: At, moved: Vec<(FeedId, u32, i64)>) {
        if self.waiters.count() > 0 {
            moved.into_iter().for_each(|(feed, partition, offset)| self.waiters.wake((at, feed, partition, offset)));
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn to_index(partition: u32) -> usize {
    usize::try_from(partition).expect("a partition number fits in usize")
}

#[cfg(test)]
mod tests;
