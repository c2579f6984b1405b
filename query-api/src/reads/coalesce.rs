//! Coalescing of row lookups in Redis: concurrent requests for the same row share one lookup, so a row that thousands
//! request at once costs Redis one lookup at a time.
//!
//! Invariant: a lookup serves only tokens that Redis showed before the lookup was sent, and only requests that expect
//! the row at the same place in Redis.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use hashbrown::HashMap;
use schemas::feeds::{PerView, StoredView};
use schemas::token::Token;

use super::ReadError;
use crate::positions::covers;
use crate::redis::Place;
use crate::row::Hit;

/// A lookup in flight.
#[derive(Clone)]
pub(super) struct Look {
    id: u64,
    place: Place,
    /// Offsets that Redis was known to show when the lookup was sent.
    offsets: Arc<[i64]>,
    pub(super) answer: Shared<BoxFuture<'static, Result<Hit, ReadError>>>,
}

/// Lookups in flight, by view.
#[derive(Default)]
pub(super) struct LookCoalescer(PerView<Mutex<OfView>>);

#[derive(Default)]
struct OfView {
    next_id: u64,
    by_key: HashMap<String, Look>,
}

impl LookCoalescer {
    /// Returns the lookup in flight if it serves the request, else the one that `begin` starts. The caller must end
    /// that one by its id.
    pub(super) fn join<F>(
        &self,
        (view, key): (StoredView, &str),
        wanted: Option<&Token>,
        (place, offsets): (Place, Arc<[i64]>),
        begin: impl FnOnce(u64) -> F,
    ) -> Look
    where
        F: Future<Output = Result<Hit, ReadError>> + Send + 'static,
    {
        let mut of_view = self.lock(view);
        // A lookup that has ended but was not removed has panicked.
        let is_enough = |look: &&Look| {
            let is_fresh = wanted.is_none_or(|token| covers(&look.offsets, token));
            look.answer.peek().is_none() && look.place == place && is_fresh
        };
        if let Some(look) = of_view.by_key.get(key).filter(is_enough) {
            return look.clone();
        }
        let id = of_view.next_id;
        of_view.next_id += 1;
        let look = Look { id, place, offsets, answer: begin(id).boxed().shared() };
        of_view.by_key.insert(key.to_owned(), look.clone());
        look
    }

    pub(super) fn end(&self, view: StoredView, key: &str, id: u64) {
        let mut of_view = self.lock(view);
        // A later lookup may have replaced it.
        if of_view.by_key.get(key).is_some_and(|look| look.id == id) {
            of_view.by_key.remove(key);
        }
    }

    fn lock(&self, view: StoredView) -> MutexGuard<'_, OfView> {
        self.0[view].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use schemas::cache::Making;
    use schemas::token::LogId;

    use super::*;

    fn product() -> StoredView {
        StoredView::named("product").unwrap()
    }

    fn place(revision: u32) -> Place {
        let making = Making { incarnation: 1, generation: 1, revision };
        Place { view: product(), partition: 0, making, revision: i64::from(revision), is_sum: false }
    }

    fn begin(looks: &LookCoalescer, offset: i64, wanted: Option<i64>) -> u64 {
        begin_at(looks, place(0), offset, wanted)
    }

    fn begin_at(looks: &LookCoalescer, place: Place, offset: i64, wanted: Option<i64>) -> u64 {
        let token = wanted.map(|offset| Token::new(LogId::of_nonce(1), 0, offset));
        looks.join((product(), "cd"), token.as_ref(), (place, [offset].into()), |_| async { Ok(Hit::Miss) }).id
    }

    #[test]
    fn a_lookup_serves_only_tokens_that_were_shown_before_it() {
        let looks = LookCoalescer::default();
        let first = begin(&looks, 5, None);
        assert_eq!(begin(&looks, 6, None), first);
        assert_eq!(begin(&looks, 6, Some(5)), first);
        let second = begin(&looks, 6, Some(6));
        assert_ne!(second, first);
        // The end of the first lookup does not end the second.
        looks.end(product(), "cd", first);
        assert_eq!(begin(&looks, 7, Some(6)), second);
        looks.end(product(), "cd", second);
        assert_ne!(begin(&looks, 7, None), second);
    }

    #[test]
    fn a_lookup_serves_only_requests_that_expect_the_row_at_the_same_place() {
        let looks = LookCoalescer::default();
        let before = begin_at(&looks, place(0), 5, None);
        let after = begin_at(&looks, place(1), 5, None);
        assert_ne!(after, before);
        assert_eq!(begin_at(&looks, place(1), 5, None), after);
    }
}
