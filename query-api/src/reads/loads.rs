//! Loads of single rows from Postgres, shared by concurrent requests for the same row.
//!
//! Invariant: however many requests miss a row in Redis, Postgres is read once at a time, and not again for a moment,
//! except for a token that the last answer does not show, or once Redis shows another making: a rebuild, or the folding
//! of a parked record, may have changed rows without moving their position.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use hashbrown::HashMap;
use schemas::feeds::ViewId;
use schemas::token::Token;

use super::{ReadError, Reads, failed};
use crate::metrics::Origin;
use crate::positions::Scope;
use crate::postgres::Side;
use crate::redis;
use crate::row::{Loaded, Row};

/// How long an ended load can still be joined: requests that missed in Redis before the row was filled there start no
/// further load. An ended load serves no token that it does not show.
const LINGER: Duration = Duration::from_millis(100);

/// Loads, each with the place of the row in Redis when it began.
pub(super) type Flights = HashMap<Load, (Option<redis::Place>, Flight)>;
/// Identity of a load: view, key, and the servers that may answer.
type Load = (ViewId, String, Side);
type Flight = Shared<BoxFuture<'static, Result<Arc<Loaded<Option<Row>>>, ReadError>>>;

impl Reads {
    /// Joins the load of this row that is in flight or has just ended, or starts one, which continues if the request is
    /// dropped.
    pub(super) fn load(
        self: &Arc<Self>,
        (view, key, scope): (ViewId, &str, Scope),
        side: Side,
        wanted: Option<&Token>,
    ) -> Flight {
        let place = view.stored().and_then(|view| {
            let makings = self.positions.makings(view)?;
            redis::Place::of(&makings, view, key, scope)
        });
        let mut flights = self.flights();
        let load = (view, key.to_owned(), side);
        let is_enough = |(began_at, flight): &&(Option<redis::Place>, Flight)| match flight.peek() {
            _ if *began_at != place => false,
            None => true,
            Some(Ok(loaded)) => wanted.is_none_or(|token| loaded.shows.covers(token)),
            Some(Err(_)) => false,
        };
        if let Some((_, flight)) = flights.get(&load).filter(is_enough) {
            self.metrics.read(view.name(), Origin::Joined);
            return flight.clone();
        }
        self.metrics.read(view.name(), if side == Side::Any { Origin::Replica } else { Origin::Postgres });
        let (reads, (_, key, _)) = (self.clone(), load.clone());
        let task = tokio::spawn(async move { reads.load_alone((view, &key, scope), place, side).await });
        // A panic in the task fails this load, not the tasks of its readers.
        let flight = task.map(|joined| joined.unwrap_or(Err(ReadError::Unavailable))).boxed().shared();
        flights.insert(load.clone(), (place, flight.clone()));
        tokio::spawn(self.clone().end_of_load(load, flight.clone()));
        flight
    }

    /// Removes a load once it has ended and lingered.
    async fn end_of_load(self: Arc<Self>, load: Load, flight: Flight) {
        if flight.clone().await.is_ok() {
            tokio::time::sleep(LINGER).await;
        }
        let mut flights = self.flights();
        // A later load may have replaced it.
        if flights.get(&load).is_some_and(|(_, standing)| standing.ptr_eq(&flight)) {
            flights.remove(&load);
        }
    }

    async fn load_alone(
        &self,
        row: (ViewId, &str, Scope),
        place: Option<redis::Place>,
        side: Side,
    ) -> Result<Arc<Loaded<Option<Row>>>, ReadError> {
        let (mut loaded, mut made) = self.store.row(side, row).await.map_err(failed)?;
        // A replica may still show rows from before a rebuild, or from before parked records were folded.
        if loaded.is_copy && place.is_some_and(|place| !made.is_of(&place)) {
            (loaded, made) = self.store.row(Side::Primary, row).await.map_err(failed)?;
        }
        let loaded = Arc::new(loaded);
        // Redis cannot represent that a row lacks parked records, so such a row is not put there.
        if let Some(place) = place.filter(|place| made.is_of(place) && loaded.parked.is_none()) {
            let (cache, loaded, key) = (self.cache.clone(), loaded.clone(), row.1.to_owned());
            tokio::spawn(async move {
                if let Err(error) = cache.fill((&place, &key), (loaded.found.as_ref(), &loaded.shows)).await {
                    tracing::debug!(error = %error, "writing a row to Redis failed");
                }
            });
        }
        Ok(loaded)
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
