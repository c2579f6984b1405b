//! The read path: Redis first, else Postgres, whose result then fills Redis.
//!
//! Invariant: an answer's token names only positions that were read together with the answer.

mod lookups;
mod loads;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::feeds::{FeedId, ViewId};
use schemas::token::Token;
use schemas::views::View;
use tokio::sync::SemaphorePermit;

use loads::Loads;
use lookups::{Lookups, Terms};

use crate::limiter::{Busy, Limiter};
use crate::lists::ListQuery;
use crate::metrics::{Metrics, Origin};
use crate::positions::{Log, NotReached, Place, Places, Positions};
use crate::postgres::{EventPage, EventStream, JournalEvent, Limits, Listed, Side, Store, StoreError};
use crate::redis::{self, Cache};
use crate::row::{Hit, Loaded, Parked, Row, RowKey};

/// Maximum number of loads per request. A load that a request joins may have begun before its token was reached; the
/// next one has not.
const MAX_LOADS: usize = 3;

/// One in this many connections to Postgres may be used by requests that read many events.
const FOLDS_SHARE: usize = 4;
/// Maximum number of such requests that wait for a permit.
const MAX_WAITING_FOLDS: usize = 100;

/// The freshness that a request asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Freshness {
    pub(crate) token: Option<Token>,
    pub(crate) wait: Duration,
    /// Address of the client, if the request has a token and the edge passed the address on.
    pub(crate) from: Option<IpAddr>,
    /// Whether to answer with the rows at hand if the token is not reached in time.
    pub(crate) lenient: bool,
}

/// A result, ready to be answered with.
#[derive(Debug)]
pub(crate) struct Shown<T> {
    pub(crate) found: T,
    pub(crate) token: Option<String>,
    /// Upper bound of the result's age; set while Redis answers and Postgres is unavailable.
    pub(crate) age: Option<Duration>,
    /// Whether the result lacks, or may lack, parked records.
    pub(crate) is_parked: bool,
}

#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the views do not show the token's events yet")]
    NotYet { token: Option<String> },
    #[error("the view has parked a record that the Consistency-Token names")]
    Parked,
    #[error("the Consistency-Token is beyond the end of the log; send a token from an answer")]
    TokenAhead,
    #[error("too many requests are waiting for the views")]
    TooManyWaiters,
    #[error("too many queries are in flight")]
    Busy { server: &'static str },
    #[error("neither Redis nor Postgres answered")]
    Unavailable,
}

/// The read path, shared by all requests.
pub(crate) struct Reads {
    pub(crate) positions: Arc<Positions>,
    pub(crate) cache: Cache,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    lookups: Lookups,
    loads: Loads,
    folds: Limiter,
}

impl Reads {
    /// Creates the read path; `limits` are those of `store`.
    pub(crate) fn new(
        positions: Arc<Positions>,
        cache: Cache,
        store: Store,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (lookups, loads) = (lookups::none(), loads::none());
        let folds = Limiter::new((limits.connections / FOLDS_SHARE).max(1), MAX_WAITING_FOLDS, limits.wait);
        Arc::new(Self { positions, cache, store, metrics, lookups, loads, folds })
    }

    pub(crate) async fn row(
        self: &Arc<Self>,
        log: Log,
        row: RowKey<'_>,
        fresh: &Freshness,
    ) -> Result<Shown<Option<Row>>, ReadError> {
        let arrived = Instant::now();
        let RowKey { view, key, scope } = row;
        let wanted = fresh.token.as_ref().filter(|_| !fresh.lenient);
        let place = self.reach(view.feed(), Places::Any, fresh, fresh.wait).await?;
        let is_stored = place == Place::Store;
        // Redis only has rows of stored views.
        if let (Place::Cache { makings, offsets }, Some(stored)) = (place, view.stored())
            && let Some(place) = redis::Place::of(&makings, stored, key, scope)
        {
            let looked = self.look(key, wanted, Terms { place, offsets }).await;
            if let Hit::Found(found, shows) = looked.map_err(|error| self.refused(error))?
                && wanted.is_none_or(|token| shows.covers(token))
            {
                self.note(view, found.as_ref());
                self.metrics.read(view.name(), Origin::Redis);
                return Ok(Shown { found, token: shows.token(log.id), age: self.positions.age(), is_parked: false });
            }
        }
        // Postgres may lag behind the position of Redis.
        if !is_stored {
            let left = fresh.wait.saturating_sub(arrived.elapsed());
            self.reach(view.feed(), Places::StoreAlone, fresh, left).await?;
        }
        // A replica that lags behind the token is tried only once.
        let sides = std::iter::once(self.store.nearest()).chain(std::iter::repeat(Side::Primary));
        for side in sides.take(MAX_LOADS) {
            let loaded = self.load(row, side, wanted).await.map_err(|error| self.refused(error))?;
            if wanted.is_none_or(|token| loaded.shows.covers(token)) {
                self.check_parked(view, &loaded, wanted).await?;
                self.note(view, loaded.found.as_ref());
                let token = loaded.named().token(log.id);
                let is_parked = loaded.parked.is_some();
                return Ok(Shown { found: loaded.found.clone(), token, age: None, is_parked });
            }
        }
        Err(ReadError::NotYet { token: self.positions.shown(view.feed()) })
    }

    pub(crate) async fn page(
        &self,
        log: Log,
        query: &ListQuery,
        fresh: &Freshness,
    ) -> Result<Shown<Vec<Listed>>, ReadError> {
        self.reach(query.view.feed(), Places::StoreAlone, fresh, fresh.wait).await?;
        let wanted = fresh.token.as_ref().filter(|_| !fresh.lenient);
        let mut loaded = self.page_from(self.store.nearest(), query).await?;
        if loaded.is_copy && wanted.is_some_and(|token| !loaded.shows.covers(token)) {
            loaded = self.page_from(Side::Primary, query).await?;
        }
        check(log, &loaded, fresh)?;
        self.check_parked(query.view, &loaded, wanted).await?;
        let token = loaded.shows.token(log.id);
        Ok(Shown { token, found: loaded.found, age: None, is_parked: loaded.parked.is_some() })
    }

    /// Refuses the request if its token names a parked record. For lists and sums the token must name exactly that
    /// record's position: the client that wrote it asks for it, while all others get the remaining rows.
    async fn check_parked<T>(&self, view: ViewId, loaded: &Loaded<T>, wanted: Option<&Token>) -> Result<(), ReadError> {
        let is_named = match (loaded.parked, wanted) {
            (None, _) | (_, None) => false,
            (Some(Parked::From(_)), Some(token)) => !loaded.named().covers(token),
            (Some(Parked::Something), Some(token)) => {
                self.store.names_parked(view, token).await.map_err(|error| self.refused(failed(error)))?
            }
        };
        if is_named { Err(ReadError::Parked) } else { Ok(()) }
    }

    async fn page_from(&self, side: Side, query: &ListQuery) -> Result<Loaded<Vec<Listed>>, ReadError> {
        let loaded = self.store.page(side, query).await.map_err(|error| self.refused(failed(error)))?;
        self.metrics.read(query.view.name(), if loaded.is_copy { Origin::Replica } else { Origin::Postgres });
        Ok(loaded)
    }

    pub(crate) async fn history(
        &self,
        log: Log,
        stream: EventStream<'_>,
        page: EventPage,
        fresh: &Freshness,
    ) -> Result<Shown<Vec<JournalEvent>>, ReadError> {
        self.reach_journal(fresh).await?;
        self.events(log, stream, page, fresh).await
    }

    /// Waits until the journal shows the positions in the token.
    pub(crate) async fn reach_journal(&self, fresh: &Freshness) -> Result<(), ReadError> {
        self.reach(FeedId::Journal, Places::StoreAlone, fresh, fresh.wait).await.map(drop)
    }

    /// Reads a page of an aggregate's events without waiting for the journal.
    pub(crate) async fn events(
        &self,
        log: Log,
        stream: EventStream<'_>,
        page: EventPage,
        fresh: &Freshness,
    ) -> Result<Shown<Vec<JournalEvent>>, ReadError> {
        let loaded = self.store.history(stream, page).await.map_err(|error| self.refused(failed(error)))?;
        self.metrics.read(FeedId::Journal.name(), Origin::Postgres);
        check(log, &loaded, fresh)?;
        let token = loaded.shows.token(log.id);
        Ok(Shown { token, found: loaded.found, age: None, is_parked: false })
    }

    /// Waits for a permit to read many events.
    pub(crate) async fn turn_to_fold(&self) -> Result<SemaphorePermit<'_>, ReadError> {
        self.folds.enter().await.map_err(|Busy| self.refused(ReadError::Busy { server: "postgres" }))
    }

    /// Returns the version and the JSON of a row that this build's fold made.
    pub(crate) async fn kept_row(&self, view: &View, key: &str) -> Result<Option<(i64, String)>, ReadError> {
        self.store.kept_row(view, key).await.map_err(|error| self.refused(failed(error)))
    }

    async fn reach(
        &self,
        feed: FeedId,
        places: Places,
        fresh: &Freshness,
        within: Duration,
    ) -> Result<Place, ReadError> {
        let Some(token) = &fresh.token else { return Ok(self.positions.place(feed)) };
        let reached = self.positions.reach(feed, places, token, within, fresh.from).await;
        self.metrics.waited(&reached);
        match reached {
            Ok(place) => Ok(place),
            Err(NotReached::Behind { .. }) if fresh.lenient => Ok(self.positions.place(feed)),
            Err(NotReached::Behind { token }) => Err(ReadError::NotYet { token }),
            Err(NotReached::TooManyWaiters) => Err(ReadError::TooManyWaiters),
            Err(NotReached::Ahead) => Err(ReadError::TokenAhead),
        }
    }

    /// Records the generation of a row before it is served, so that `GET /v1/views` never reports an older one.
    fn note(&self, view: ViewId, row: Option<&Row>) {
        if let Some(row) = row {
            self.positions.note_generation(view.base(), row.generation);
        }
    }

    /// Counts refusals; returns the error unchanged.
    fn refused(&self, error: ReadError) -> ReadError {
        if let ReadError::Busy { server } = error {
            self.metrics.refused(server);
        }
        error
    }
}

/// Checks that the result shows the positions in the token: a primary that was restored or failed over may have lost
/// records that it showed before.
fn check<T>(log: Log, loaded: &Loaded<T>, fresh: &Freshness) -> Result<(), ReadError> {
    match &fresh.token {
        Some(token) if !fresh.lenient && !loaded.shows.covers(token) => {
            Err(ReadError::NotYet { token: loaded.shows.token(log.id) })
        }
        _ => Ok(()),
    }
}

fn failed(error: StoreError) -> ReadError {
    if let StoreError::Busy(_) = error {
        return ReadError::Busy { server: "postgres" };
    }
    tracing::debug!(error = %error, "reading from Postgres failed");
    ReadError::Unavailable
}
