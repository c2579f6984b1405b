//! The read path: Redis, then Postgres, which then fills Redis.
//!
//! Invariant: an answer names only what it is sure to show: positions known before its read was sent, or read in
//! the same statement.
//!
//! Invariant: however many ask for a row that Redis does not have, Postgres is asked once at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use schemas::token::Token;
use schemas::views::FEEDS;

use crate::lists::ListQuery;
use crate::metrics::{Metrics, Origin};
use crate::positions::{Log, NotReached, Place, Positions, Scope, covers, token_text};
use crate::postgres::{JournalEvent, Listed, Loaded, Store, StoreError};
use crate::redis::{Cache, Hit};

/// A load that ends right after a request's token was reached may still have begun before; the next one did not.
const MAX_LOADS: usize = 3;

/// In the bytes that are served.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) version: u64,
    pub(crate) body: Bytes,
}

/// What a request wants to be sure to see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Freshness {
    pub(crate) token: Option<Token>,
    pub(crate) wait: Duration,
    /// Whether what is there is good enough when the time is over.
    pub(crate) lenient: bool,
}

#[derive(Debug)]
pub(crate) struct Shown<T> {
    pub(crate) found: T,
    pub(crate) token: Option<String>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the views do not show the token's events yet")]
    NotYet { token: Option<String> },
    #[error("too many requests wait for the views")]
    TooManyWaiters,
    #[error("neither Redis nor Postgres gave an answer")]
    Unavailable,
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Loaded<Option<Row>>>, ReadError>>>;

/// Shared by all requests.
pub(crate) struct Reads {
    pub(crate) positions: Arc<Positions>,
    pub(crate) cache: Cache,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    /// Loads of single rows that have not ended.
    flights: Mutex<HashMap<(usize, String), Flight>>,
}

impl Reads {
    pub(crate) fn new(positions: Arc<Positions>, cache: Cache, store: Store, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { positions, cache, store, metrics, flights: Mutex::default() })
    }

    pub(crate) async fn row(
        self: &Arc<Self>,
        log: Log,
        (view, key, scope): (usize, &str, Scope),
        fresh: &Freshness,
    ) -> Result<Shown<Option<Row>>, ReadError> {
        if let Place::Cache { incarnation, token } = self.reach(view, scope, fresh).await? {
            match self.cache.row(&incarnation, view, key).await {
                Ok(Hit::Row(row)) => {
                    self.metrics.read(view, Origin::Redis);
                    return Ok(Shown { found: Some(row), token });
                }
                Ok(Hit::Absent) => {}
                Ok(Hit::OtherIncarnation) => self.positions.doubt_cache(),
                Err(error) => {
                    tracing::debug!(error = %error, "a read from Redis failed");
                    self.positions.doubt_cache();
                }
            }
        }
        let wanted = fresh.token.as_ref().filter(|_| !fresh.lenient);
        for _ in 0..MAX_LOADS {
            let loaded = self.load(view, key).await?;
            if wanted.is_none_or(|token| covers(&loaded.offsets, token)) {
                return Ok(Shown { found: loaded.found.clone(), token: token_of(log, &loaded.offsets, scope) });
            }
        }
        Err(ReadError::NotYet { token: self.positions.shown(view) })
    }

    pub(crate) async fn page(
        &self,
        log: Log,
        query: &ListQuery,
        fresh: &Freshness,
    ) -> Result<Shown<Vec<Listed>>, ReadError> {
        self.reach(query.view, Scope::All, fresh).await?;
        let loaded = self.store.page(query).await.map_err(unavailable)?;
        self.metrics.read(query.view, Origin::Postgres);
        Ok(Shown { token: token_of(log, &loaded.offsets, Scope::All), found: loaded.found })
    }

    pub(crate) async fn history(
        &self,
        log: Log,
        (aggregate, partition): (&str, u32),
        (after, limit): (i64, i64),
        fresh: &Freshness,
    ) -> Result<Shown<Vec<JournalEvent>>, ReadError> {
        let scope = Scope::One(partition);
        self.reach(FEEDS.len() - 1, scope, fresh).await?;
        let loaded = self.store.history(aggregate, after, limit).await.map_err(unavailable)?;
        self.metrics.read(FEEDS.len() - 1, Origin::Postgres);
        Ok(Shown { token: token_of(log, &loaded.offsets, scope), found: loaded.found })
    }

    async fn reach(&self, feed: usize, scope: Scope, fresh: &Freshness) -> Result<Place, ReadError> {
        let Some(token) = &fresh.token else { return Ok(self.positions.place(feed, scope)) };
        let reached = self.positions.reach(feed, scope, token, fresh.wait).await;
        self.metrics.waited(&reached);
        match reached {
            Ok(place) => Ok(place),
            Err(NotReached::Behind { .. }) if fresh.lenient => Ok(self.positions.place(feed, scope)),
            Err(NotReached::Behind { token }) => Err(ReadError::NotYet { token }),
            Err(NotReached::TooManyWaiters) => Err(ReadError::TooManyWaiters),
        }
    }

    /// Joins the load of this row that is in flight, or begins one, which goes on if the request is given up.
    fn load(self: &Arc<Self>, view: usize, key: &str) -> Flight {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (view, key.to_owned());
        // One that ended and is still here panicked.
        if let Some(flight) = flights.get(&place).filter(|flight| flight.peek().is_none()) {
            self.metrics.read(view, Origin::Joined);
            return flight.clone();
        }
        self.metrics.read(view, Origin::Postgres);
        let reads = self.clone();
        let task = tokio::spawn({
            let (view, key) = place.clone();
            async move { reads.load_alone(view, &key).await }
        });
        // A task that panicked is an outage of this row, not of its readers.
        let flight = task.map(|joined| joined.unwrap_or(Err(ReadError::Unavailable))).boxed().shared();
        flights.insert(place, flight.clone());
        flight
    }

    async fn load_alone(&self, view: usize, key: &str) -> Result<Arc<Loaded<Option<Row>>>, ReadError> {
        // From before the read: a fill that arrives long after may be older than what was there since.
        let cache = self.positions.cache();
        let loaded = self.store.row(view, key).await;
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&(view, key.to_owned()));
        let loaded = loaded.map_err(unavailable)?;
        if let (Some(cached), Some(row)) = (cache, loaded.found.clone()) {
            let (cache, key) = (self.cache.clone(), key.to_owned());
            tokio::spawn(async move {
                if let Err(error) = cache.fill(&cached.incarnation, cached.clock, view, &key, &row).await {
                    tracing::debug!(error = %error, "a row was not put into Redis");
                }
            });
        }
        Ok(Arc::new(loaded))
    }
}

fn token_of(log: Log, offsets: &[i64], scope: Scope) -> Option<String> {
    match scope {
        Scope::One(partition) if usize::try_from(partition).is_ok_and(|index| index >= offsets.len()) => None,
        Scope::One(_) | Scope::All => token_text(log.id, offsets, scope),
    }
}

fn unavailable(error: StoreError) -> ReadError {
    tracing::debug!(error = %error, "a read from Postgres failed");
    ReadError::Unavailable
}
