//! How far the views are, and waiting for them to get further.
//!
//! There are two places to read from, and what one shows the other need not show yet: Postgres is ahead of Redis
//! by the time between a commit and the write that follows it, or by all of an outage of Redis.
//!
//! Invariant: positions are lower bounds. What is read from a place after a position of it was known shows at
//! least that position.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use schemas::cache::Applied;
use schemas::token::{LogId, Token};
use schemas::views::FEEDS;
use tokio::sync::{Notify, watch};

/// Requests that may wait at a time; each is small, but their wake-ups are not free.
const MAX_WAITERS: usize = 10_000;

/// Postgres is looked at every second; a look that fails may take a few.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);

/// Where no record is shown yet.
const NOTHING: i64 = -1;

/// The log that the views are folded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    pub(crate) partitions: u32,
}

/// Offsets by partition, by feed in the order of [`FEEDS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offsets(Vec<Vec<i64>>);

/// Redis, as long as it is known to follow the log.
#[derive(Debug, Clone)]
pub(crate) struct Cached {
    pub(crate) incarnation: Arc<str>,
    pub(crate) offsets: Offsets,
    /// Redis's clock in ms when ours showed the instant.
    pub(crate) clock: (u64, Instant),
}

#[derive(Debug, Default)]
struct State {
    log: Option<Log>,
    store: Option<Offsets>,
    cache: Option<Cached>,
}

/// Which partitions an answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    One(u32),
    All,
}

/// Where a request can be answered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Redis, in this incarnation, with what it is sure to show.
    Cache {
        incarnation: Arc<str>,
        token: Option<String>,
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
}

#[derive(Debug)]
pub(crate) struct Positions {
    begun: Instant,
    /// When Postgres last told its checkpoints, or Redis of a view that moved, in ms since `begun`.
    confirmed_ms: AtomicU64,
    state: watch::Sender<State>,
    waiters: AtomicUsize,
    someone_waits: Notify,
    /// See [`Positions::doubt_cache`].
    cache_doubted: Notify,
}

impl Default for Positions {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            confirmed_ms: AtomicU64::default(),
            state: watch::Sender::default(),
            waiters: AtomicUsize::default(),
            someone_waits: Notify::default(),
            cache_doubted: Notify::default(),
        }
    }
}

impl Offsets {
    pub(crate) fn none(partitions: u32) -> Self {
        Self(vec![vec![NOTHING; to_index(partitions)]; FEEDS.len()])
    }

    pub(crate) fn of(&self, feed: usize) -> &[i64] {
        &self.0[feed]
    }

    /// Whether anything moved. What this build does not know is passed over.
    pub(crate) fn advance<'a>(&mut self, applied: impl IntoIterator<Item = Applied<'a>>) -> bool {
        let mut moved = false;
        for Applied { view, partition, offset } in applied {
            let Some(feed) = FEEDS.iter().position(|feed| *feed == view) else { continue };
            let Some(standing) = self.0[feed].get_mut(to_index(partition)) else { continue };
            moved |= offset > *standing;
            *standing = offset.max(*standing);
        }
        moved
    }
}

/// Whether these offsets show all that the token names.
pub(crate) fn covers(offsets: &[i64], token: &Token) -> bool {
    token.positions.iter().all(|(partition, offset)| offsets.get(to_index(*partition)).is_some_and(|at| at >= offset))
}

/// What these offsets are sure to show, as a token's text; `None`: nothing.
pub(crate) fn token_text(log: LogId, offsets: &[i64], scope: Scope) -> Option<String> {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut write = |partition: usize, offset: i64| {
        if offset == NOTHING {
            return;
        }
        let written = match text.as_str() {
            "" => write!(text, "{log}.{partition}-{offset}"),
            _ => write!(text, ",{partition}-{offset}"),
        };
        written.expect("a string takes all");
    };
    match scope {
        Scope::One(partition) => write(to_index(partition), offsets[to_index(partition)]),
        Scope::All => offsets.iter().enumerate().for_each(|(partition, offset)| write(partition, *offset)),
    }
    Some(text).filter(|text| !text.is_empty())
}

impl Positions {
    /// `None` until the projector has folded the log's first record and Postgres told of it.
    pub(crate) fn log(&self) -> Option<Log> {
        self.state.borrow().log
    }

    /// Redis as it is known just now.
    pub(crate) fn cache(&self) -> Option<Cached> {
        self.state.borrow().cache.clone()
    }

    /// The furthest that is known of any place.
    pub(crate) fn shown(&self, feed: usize) -> Option<String> {
        let state = self.state.borrow();
        let offsets = state.store.as_ref().or(state.cache.as_ref().map(|cached| &cached.offsets))?;
        token_text(state.log?.id, offsets.of(feed), Scope::All)
    }

    /// Where to read now.
    pub(crate) fn place(&self, feed: usize, scope: Scope) -> Place {
        self.state.borrow().cached(feed, scope, None).unwrap_or(Place::Store)
    }

    /// Where to read what the token names, once it is shown anywhere; Redis rather than Postgres.
    pub(crate) async fn reach(
        &self,
        feed: usize,
        scope: Scope,
        token: &Token,
        within: Duration,
    ) -> Result<Place, NotReached> {
        let now = self.state.borrow().place(feed, scope, token);
        if let Some(place) = now {
            return Ok(place);
        }
        let _waiter = Waiter::enter(self).ok_or(NotReached::TooManyWaiters)?;
        let mut changes = self.state.subscribe();
        let reached = changes.wait_for(|state| state.place(feed, scope, token).is_some());
        let in_time = tokio::time::timeout(within, reached).await.is_ok();
        let state = self.state.borrow();
        match state.place(feed, scope, token) {
            Some(place) if in_time => Ok(place),
            Some(_) | None => Err(NotReached::Behind { token: state.reached_of(feed, token) }),
        }
    }

    pub(crate) fn waiters(&self) -> usize {
        self.waiters.load(Ordering::Relaxed)
    }

    /// Returns when somebody waits; then Postgres should be looked at, in case Redis does not tell.
    pub(crate) async fn someone_waits(&self) {
        while self.waiters() == 0 {
            self.someone_waits.notified().await;
        }
    }

    pub(crate) fn know_log(&self, log: Log) {
        self.state.send_if_modified(|state| state.log.replace(log) != Some(log));
    }

    /// How long nothing was heard of the views, if for long: what Redis has may be that old.
    pub(crate) fn age(&self) -> Option<Duration> {
        let confirmed = Duration::from_millis(self.confirmed_ms.load(Ordering::Relaxed));
        Some(self.begun.elapsed().saturating_sub(confirmed)).filter(|age| *age > CONFIRMED_WITHIN)
    }

    fn confirm(&self) {
        self.confirmed_ms.store(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Checkpoints seen in Postgres.
    pub(crate) fn advance_store<'a>(&self, applied: impl IntoIterator<Item = Applied<'a>>) {
        self.confirm();
        self.state.send_if_modified(|state| {
            let Some(log) = state.log else { return false };
            state.store.get_or_insert_with(|| Offsets::none(log.partitions)).advance(applied)
        });
    }

    /// All of what Redis shows, read there.
    pub(crate) fn know_cache(&self, incarnation: &str, applied: &HashMap<String, i64>, clock: (u64, Instant)) {
        self.state.send_modify(|state| {
            let Some(log) = state.log else { return };
            let mut offsets = Offsets::none(log.partitions);
            offsets.advance(applied.iter().filter_map(|(field, offset)| {
                let (view, partition) = schemas::cache::parse_position_field(field)?;
                Some(Applied { view, partition, offset: *offset })
            }));
            state.cache = Some(Cached { incarnation: incarnation.into(), offsets, clock });
        });
    }

    /// News of Redis. `false`: they are of another incarnation than is known here, and Redis has to be read.
    pub(crate) fn advance_cache<'a>(&self, incarnation: &str, applied: impl IntoIterator<Item = Applied<'a>>) -> bool {
        let mut known = false;
        self.state.send_if_modified(|state| {
            let Some(cache) = state.cache.as_mut().filter(|cache| *cache.incarnation == *incarnation) else {
                return false;
            };
            known = true;
            self.confirm();
            cache.offsets.advance(applied)
        });
        known
    }

    pub(crate) fn lose_cache(&self) {
        self.state.send_if_modified(|state| state.cache.take().is_some());
    }

    /// Redis failed a request or shows another incarnation: nobody reads there until it was looked at anew.
    pub(crate) fn doubt_cache(&self) {
        self.lose_cache();
        self.cache_doubted.notify_one();
    }

    pub(crate) async fn cache_doubted(&self) {
        self.cache_doubted.notified().await;
    }
}

impl State {
    fn place(&self, feed: usize, scope: Scope, token: &Token) -> Option<Place> {
        let stored = self.store.as_ref().is_some_and(|store| covers(store.of(feed), token));
        self.cached(feed, scope, Some(token)).or(stored.then_some(Place::Store))
    }

    fn cached(&self, feed: usize, scope: Scope, token: Option<&Token>) -> Option<Place> {
        let (log, cache) = (self.log?, self.cache.as_ref()?);
        let offsets = cache.offsets.of(feed);
        if !token.is_none_or(|token| covers(offsets, token)) {
            return None;
        }
        Some(Place::Cache { incarnation: cache.incarnation.clone(), token: token_text(log.id, offsets, scope) })
    }

    /// What any place shows of the partitions that the token names.
    fn reached_of(&self, feed: usize, token: &Token) -> Option<String> {
        let mut offsets = vec![NOTHING; to_index(self.log?.partitions)];
        let places = [self.store.as_ref(), self.cache.as_ref().map(|cache| &cache.offsets)];
        for place in places.into_iter().flatten() {
            for partition in token.positions.keys().map(|partition| to_index(*partition)) {
                offsets[partition] = offsets[partition].max(place.of(feed)[partition]);
            }
        }
        token_text(self.log?.id, &offsets, Scope::All)
    }
}

/// Counted while it lives.
struct Waiter<'a>(&'a Positions);

impl<'a> Waiter<'a> {
    fn enter(positions: &'a Positions) -> Option<Self> {
        let waiter = Self(positions);
        let before = positions.waiters.fetch_add(1, Ordering::Relaxed);
        positions.someone_waits.notify_one();
        (before < MAX_WAITERS).then_some(waiter)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

fn to_index(partition: u32) -> usize {
    usize::try_from(partition).expect("a partition's number fits")
}

#[cfg(test)]
mod tests;
