//! Loads of single rows from Postgres, shared by concurrent requests for the same row.
//!
//! Invariant: however many requests miss a row in Redis, Postgres is read once at a time, and not again for a moment,
//! except for a token that the last answer does not show, or once Redis shows another making: a rebuild, or the folding
//! of a parked record, may have changed rows without moving their position.

use std::sync::Arc;
use std::time::Duration;

use schemas::feeds::ViewId;
use schemas::token::Token;

use super::{ReadError, Reads, failed};
use crate::metrics::Origin;
use crate::postgres::Side;
use crate::redis;
use crate::row::{Loaded, Row, RowKey};
use crate::single_flight::SingleFlight;

/// Time for which an ended load can still be joined: requests that missed in Redis before the row was filled there start no
/// further load. An ended load serves no token that it does not show.
const LINGER: Duration = Duration::from_millis(100);

/// Loads in flight or just ended, each with the place of the row in Redis when it began.
pub(super) type Loads = SingleFlight<Load, Option<redis::Place>, LoadedRow>;
/// Identity of a load: view, key, and the servers that may answer.
type Load = (ViewId, String, Side);
type LoadedRow = Result<Arc<Loaded<Option<Row>>>, ReadError>;

pub(super) fn none() -> Loads {
    SingleFlight::new(LINGER)
}

impl Reads {
    /// Joins the load of this row that is in flight or has just ended, or starts one, which continues if the request is
    /// dropped.
    pub(super) async fn load(self: &Arc<Self>, row: RowKey<'_>, side: Side, wanted: Option<&Token>) -> LoadedRow {
        let RowKey { view, key, scope } = row;
        let place = view.stored().and_then(|view| {
            let makings = self.positions.makings(view)?;
            redis::Place::of(&makings, view, key, scope)
        });
        let serves = |began_at: &Option<redis::Place>, ended: Option<&LoadedRow>| {
            *began_at == place && ended.is_none_or(|loaded| serves(loaded, wanted))
        };
        let mut origin = Origin::Joined;
        let answer = self.loads.join(&(view, key.to_owned(), side), place, serves, || {
            origin = if side == Side::Any { Origin::Replica } else { Origin::Postgres };
            let (reads, key) = (self.clone(), key.to_owned());
            async move { reads.load_alone(RowKey { view, key: &key, scope }, place, side).await }
        });
        self.metrics.read(view.name(), origin);
        // A panic in the task fails this load, not the tasks of its readers.
        answer.await.unwrap_or(Err(ReadError::Unavailable))
    }

    async fn load_alone(&self, row: RowKey<'_>, place: Option<redis::Place>, side: Side) -> LoadedRow {
        let (mut loaded, mut made) = self.store.row(side, row).await.map_err(failed)?;
        // A replica may still show rows from before a rebuild, or from before parked records were folded.
        if loaded.is_copy && place.is_some_and(|place| !made.is_of(&place)) {
            (loaded, made) = self.store.row(Side::Primary, row).await.map_err(failed)?;
        }
        let loaded = Arc::new(loaded);
        // Redis cannot represent that a row lacks parked records, so such a row is not put there.
        if let Some(place) = place.filter(|place| made.is_of(place) && loaded.parked.is_none()) {
            let (cache, loaded, key) = (self.cache.clone(), loaded.clone(), row.key.to_owned());
            // This task ends by itself: the call has a time limit, and the fills have a maximum number.
            tokio::spawn(async move {
                if let Err(error) = cache.fill(&place, &key, loaded.found.as_ref(), &loaded.shows).await {
                    tracing::debug!(error = %error, "writing a row to Redis failed");
                }
            });
        }
        Ok(loaded)
    }
}

/// Returns whether the result of an ended load serves a request.
fn serves(loaded: &LoadedRow, wanted: Option<&Token>) -> bool {
    loaded.as_ref().is_ok_and(|loaded| wanted.is_none_or(|token| loaded.shows.covers(token)))
}
