//! Lookups of rows in Redis, shared by concurrent requests for the same row, so a row that thousands request at once
//! costs Redis one lookup at a time.
//!
//! Invariant: a lookup serves only tokens that Redis showed before the lookup was sent, and only requests that expect
//! the row at the same place in Redis.

use std::sync::Arc;
use std::time::Duration;

use schemas::feeds::PerView;
use schemas::token::Token;

use super::{ReadError, Reads};
use crate::positions::covers;
use crate::redis::{CacheError, Place};
use crate::row::Hit;
use crate::single_flight::SingleFlight;

/// Lookups in flight, by view and key.
pub(super) type Lookups = PerView<SingleFlight<String, Terms, Result<Hit, ReadError>>>;

/// The state of Redis that a lookup relies on.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) place: Place,
    /// Offsets that Redis was known to show when the lookup was sent.
    pub(super) offsets: Arc<[i64]>,
}

impl Terms {
    fn serve(&self, place: Place, wanted: Option<&Token>) -> bool {
        self.place == place && wanted.is_none_or(|token| covers(&self.offsets, token))
    }
}

/// Creates the registry. A lookup that has ended serves no further request: the next one may show more.
pub(super) fn none() -> Lookups {
    std::array::from_fn(|_| SingleFlight::new(Duration::ZERO))
}

impl Reads {
    /// Joins the lookup of this row that is in flight, or starts one, which continues if the request is dropped.
    pub(super) async fn look(
        self: &Arc<Self>,
        key: &str,
        wanted: Option<&Token>,
        terms: Terms,
    ) -> Result<Hit, ReadError> {
        let place = terms.place;
        let serves = |terms: &Terms, ended: Option<&_>| ended.is_none() && terms.serve(place, wanted);
        let answer = self.lookups[place.view].join(key, terms, serves, || {
            let (reads, key) = (self.clone(), key.to_owned());
            async move { reads.look_alone(&place, &key).await }
        });
        // A panic in the task counts as a miss, as if Redis were unavailable.
        answer.await.unwrap_or(Ok(Hit::Miss))
    }

    async fn look_alone(&self, place: &Place, key: &str) -> Result<Hit, ReadError> {
        match self.cache.row(place, key).await {
            Ok(hit) => {
                if let Hit::Elsewhere(shown) = hit {
                    self.positions.know_shown(place.view, place.partition, shown);
                }
                Ok(hit)
            }
            // Falling back to Postgres would only move the overload there.
            Err(CacheError::Busy(_)) => Err(ReadError::Busy { server: "redis" }),
            Err(error) => {
                tracing::debug!(error = %error, "reading from Redis failed");
                self.positions.doubt_cache(self.cache.is_cluster().then_some(place.partition));
                Ok(Hit::Miss)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::cache::Making;
    use schemas::feeds::StoredView;
    use schemas::token::LogId;

    use super::*;

    fn place(revision: u32) -> Place {
        let making = Making { incarnation: 1, generation: 1, revision };
        let view = StoredView::named("product").unwrap();
        Place { view, partition: 0, making, revision: i64::from(revision), is_sum: false }
    }

    fn token(offset: i64) -> Token {
        Token::new(LogId::of_nonce(1), 0, offset)
    }

    #[test]
    fn a_lookup_serves_only_tokens_that_were_shown_before_it() {
        let terms = Terms { place: place(0), offsets: [5].into() };
        assert!(terms.serve(place(0), None));
        assert!(terms.serve(place(0), Some(&token(5))));
        assert!(!terms.serve(place(0), Some(&token(6))));
    }

    #[test]
    fn a_lookup_serves_only_requests_that_expect_the_row_at_the_same_place() {
        let terms = Terms { place: place(0), offsets: [5].into() };
        assert!(!terms.serve(place(1), None));
        assert!(!terms.serve(place(1), Some(&token(5))));
    }
}
