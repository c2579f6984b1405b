//! How far the views are, and waiting for them to get further.
//!
//! There are two places to read from, and what one shows the other need not show yet. So there are two positions of each
//! view, and who reads Postgres waits for Postgres's own.
//!
//! Invariant: positions of Postgres are lower bounds. Those of Redis only tell when it is worth to look: what an answer
//! shows, the position tells that came with it.

mod waiters;
mod offsets;
mod cached;
mod ends;
mod state;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use schemas::cache::{END, Making, News, Shown};
use schemas::feeds::{FeedId, PerView, StoredView};
use schemas::token::{LogId, Token};
use tokio::sync::Notify;

use offsets::token_text;
pub(crate) use offsets::{Applied, Offsets, Shows, covers};

use cached::Cached;
use ends::{PastEnds, Written};
use state::State;
use waiters::{At, Waiters};

/// Postgres is looked at every second; a look that fails may take a few.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);

/// Between looks of one that waits at where the log ends.
const LOOK_FOR_THE_END_EVERY: Duration = Duration::from_secs(1);

/// Where no record is shown yet.
pub(crate) const NOTHING: i64 = -1;

/// The log that the views are folded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    pub(crate) partitions: u32,
}

/// What names the rows of a view in Redis, by partition; `None`: nothing is shown there.
pub(crate) type Makings = Arc<[Option<Making>]>;

/// How far a server is.
#[derive(Debug)]
pub(crate) struct Progress {
    /// What it shows of the feed, as a token; `None`: nothing.
    pub(crate) applied: Option<String>,
    /// For how long the log has had records, at least, that it does not show.
    pub(crate) behind: Option<Duration>,
}

/// Which partitions an answer depends on.
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

/// Which places may answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Places {
    Any,
    /// Redis has nothing of what is asked for.
    StoreAlone,
}

/// Where a request can be answered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Redis, with what it is known to show of the feed.
    Cache {
        makings: Makings,
        offsets: Arc<[i64]>,
    },
    Store,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReached {
    /// In time; `token`: what is shown of what was asked for.
    Behind {
        token: Option<String>,
    },
    TooManyWaiters,
    /// Never: the log ends before it.
    Ahead,
}

#[derive(Debug)]
pub(crate) struct Positions {
    begun: Instant,
    /// When Postgres last told its checkpoints, or Redis of a view that moved, in ms since `begun`.
    confirmed_ms: AtomicU64,
    state: RwLock<State>,
    /// The latest generation of each stored view that Postgres told or an answer showed. It never goes back: what a
    /// client has seen of a row must not be newer than what it is told of the view.
    generations: PerView<AtomicU32>,
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
            waiters: Waiters::default(),
            someone_waits: Notify::default(),
            cache_doubted: Notify::default(),
        }
    }
}

impl Positions {
    /// `None` until the projector has folded the log's first record and Postgres told of it.
    pub(crate) fn log(&self) -> Option<Log> {
        self.read().log
    }

    /// What names the rows of a view in Redis, as it is known just now.
    pub(crate) fn makings(&self, view: StoredView) -> Option<Makings> {
        Some(self.read().cache.as_ref()?.makings[FeedId::View(view)].clone())
    }

    /// The furthest that is known of any place.
    pub(crate) fn shown(&self, feed: FeedId) -> Option<String> {
        let state = self.read();
        token_text(state.log?.id, &state.furthest(feed)?, Scope::All)
    }

    /// How many records some other feed shows that this one does not. How far the log goes is not known here.
    pub(crate) fn lag(&self, feed: FeedId) -> Option<u64> {
        let state = self.read();
        let feeds = FeedId::all().map(|feed| state.furthest(feed));
        let behind = feeds[feed].as_ref()?.iter().enumerate().map(|(partition, at)| {
            let furthest = feeds.iter().flatten().map(|feed| feed[partition]).max().unwrap_or(NOTHING);
            furthest.abs_diff(*at)
        });
        Some(behind.sum())
    }

    /// Tells how far Redis and Postgres are; `None` of one that nothing is known of.
    pub(crate) fn progress(&self, feed: FeedId) -> [Option<Progress>; 2] {
        let (state, now) = (self.read(), Instant::now());
        let of_server = |offsets: &[i64]| {
            let applied = state.log.and_then(|log| token_text(log.id, offsets, Scope::All));
            Progress { applied, behind: state.ends.as_ref().and_then(|ends| ends.behind(offsets, now)) }
        };
        let stored = state.store.as_ref().map(|store| of_server(store.of(feed)));
        [state.in_cache(feed).map(|offsets| of_server(offsets)), stored]
    }

    /// Where to read now.
    pub(crate) fn place(&self, feed: FeedId) -> Place {
        self.read().cached(feed, None).unwrap_or(Place::Store)
    }

    /// Returns where to read what the token names, once one of `places` shows it; Redis rather than Postgres.
    ///
    /// A token that the log does not reach is refused as soon as its end is known to be younger than the request. Until
    /// then few may wait, of those who come `from` the same address.
    pub(crate) async fn reach(
        &self,
        (feed, places): (FeedId, Places),
        token: &Token,
        within: Duration,
        from: Option<IpAddr>,
    ) -> Result<Place, NotReached> {
        if let Some(place) = self.read().place((feed, places), token) {
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
                if let Some(place) = state.place((feed, places), token) {
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
                waiter.wait_for(state.missing((feed, places), token))
            };
            let until = deadline.min(tokio::time::Instant::now() + LOOK_FOR_THE_END_EVERY);
            if tokio::time::timeout_at(until, entry.woken()).await.is_err() && until == deadline {
                return Err(NotReached::Behind { token: self.read().reached_of((feed, places), token) });
            }
        }
    }

    pub(crate) fn waiters(&self) -> usize {
        self.waiters.count()
    }

    /// Returns when somebody waits; then Postgres should be looked at, in case Redis does not tell.
    pub(crate) async fn someone_waits(&self) {
        while self.waiters() == 0 {
            self.someone_waits.notified().await;
        }
    }

    pub(crate) fn know_log(&self, log: Log) {
        self.write().log = Some(log);
    }

    /// How long nothing was heard of the views, if for long: what Redis has may be that old.
    pub(crate) fn age(&self) -> Option<Duration> {
        let confirmed = Duration::from_millis(self.confirmed_ms.load(Ordering::Relaxed));
        Some(self.begun.elapsed().saturating_sub(confirmed)).filter(|age| *age > CONFIRMED_WITHIN)
    }

    fn confirm(&self) {
        self.confirmed_ms.store(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Checkpoints seen in Postgres at this moment.
    pub(crate) fn advance_store<'a>(&self, applied: impl IntoIterator<Item = Applied<'a>>, now: Instant) {
        self.confirm();
        let mut state = self.write();
        let Some(log) = state.log else { return };
        let moved = state.store.get_or_insert_with(|| Offsets::none(log.partitions)).advance(applied);
        state.raise_floor(now);
        drop(state);
        self.wake(At::Store, moved);
    }

    /// Takes in the generation of a view as the checkpoints in Postgres tell it.
    pub(crate) fn know_generation(&self, view: &str, generation: u32) {
        if let Some(view) = StoredView::named(view) {
            self.note_generation(view, generation);
        }
    }

    /// Takes in the generation of a row that is about to be served.
    pub(crate) fn note_generation(&self, view: StoredView, generation: u32) {
        // Nearly always known already: a load leaves the cache line shared by all readers.
        if self.generation(view) < generation {
            self.generations[view].fetch_max(generation, Ordering::Relaxed);
        }
    }

    pub(crate) fn generation(&self, view: StoredView) -> u32 {
        self.generations[view].load(Ordering::Relaxed)
    }

    /// All of what Redis shows, read there.
    pub(crate) fn know_cache<'a>(&self, all: impl IntoIterator<Item = News<'a>>, clock: (u64, Instant)) {
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

    /// Takes news of Redis. `false`: nothing is known of it, and it has to be read.
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

    /// Takes what was found at a view's position in a partition; `None`: nothing that this build understands.
    pub(crate) fn know_shown(&self, (view, partition): (StoredView, u32), shown: Option<Shown>) {
        let mut state = self.write();
        let State { cache: Some(cache), floor, .. } = &mut *state else { return };
        let moved = cache.know((FeedId::View(view), partition), shown, floor.as_ref());
        drop(state);
        self.wake(At::Cache, moved.into_iter().collect());
    }

    pub(crate) fn lose_cache(&self) {
        self.write().cache = None;
    }

    /// Redis failed a request: nobody reads there, or in that one partition, until it was looked at anew.
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
    usize::try_from(partition).expect("a partition's number fits")
}

#[cfg(test)]
mod tests;
