//! Keeps the lines of a batch in order, whichever instances decide them.
//!
//! Invariant: after a 503, every later line of the same aggregate is also answered 503, since it would overtake the
//! refused one. Each process shares one [`BatchOrder`] among the lines of a batch: the process that received the batch,
//! and each owner per link, where lines carry the name of their batch.
//!
//! Invariant: lines of one aggregate are in flight on one [`Route`] at a time. Two owners, or two links to the same
//! owner, do not see each other's refusals.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::hash_map::EntryRef;
use hashbrown::{HashMap, HashSet};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use tokio::time::Instant;

/// Number of batches below which a cleanup is not worthwhile.
const MIN_TIDIED: usize = 1024;
/// Maximum number of batches remembered per link. Lines of further batches are refused.
const MAX_BATCHES: usize = 65_536;

/// The place where a line is decided. Lines on the same route keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Here,
    /// A connection to a peer, by its number in this process; `None` while it is still to be determined.
    Away(Option<u64>),
}

/// The order of one batch's lines.
#[derive(Debug)]
pub(crate) struct BatchOrder {
    name: u64,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    /// Aggregates with a refused line.
    refused: HashSet<AggregateId>,
    /// Aggregates with lines in flight, with the route and number of those lines.
    under_way: HashMap<AggregateId, (Route, usize)>,
}

impl BatchOrder {
    pub(crate) fn new() -> Arc<Self> {
        Self::named(rand::random())
    }

    fn named(name: u64) -> Arc<Self> {
        Arc::new(Self { name, lines: Mutex::default() })
    }

    /// Returns the name by which owners recognize the batch. It is random, so no two batches of one link share it.
    pub(crate) fn name(&self) -> u64 {
        self.name
    }

    pub(crate) fn refuse(&self, aggregate: &AggregateId) {
        self.lines().refused.insert(aggregate.clone());
    }

    pub(crate) fn is_refused(&self, aggregate: &AggregateId) -> bool {
        self.lines().refused.contains(aggregate)
    }

    /// Registers a line as in flight. An error is the line's answer: it would overtake an earlier line.
    pub(crate) fn enter(self: &Arc<Self>, aggregate: &AggregateId, route: Route) -> Result<LineInFlight, Answer> {
        let mut lines = self.lines();
        if lines.refused.contains(aggregate) {
            return Err(overtaking());
        }
        match lines.under_way.get_mut(aggregate) {
            None => drop(lines.under_way.insert(aggregate.clone(), (route, 1))),
            Some((earlier, count))
                if *earlier == route || matches!((*earlier, route), (Route::Away(_), Route::Away(None))) =>
            {
                *count += 1;
            }
            Some(_) => return Err(lines.refuse_other_route(aggregate)),
        }
        Ok(LineInFlight { order: self.clone(), aggregate: aggregate.clone(), answered: false })
    }

    fn has_refused(&self) -> bool {
        !self.lines().refused.is_empty()
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn refuse_other_route(&mut self, aggregate: &AggregateId) -> Answer {
        self.refused.insert(aggregate.clone());
        let detail = "the owner changed while earlier lines for the same aggregate were in flight".into();
        Answer::Overloaded { detail }
    }
}

/// Returns the answer to a line behind a refused one of the same aggregate.
pub(crate) fn overtaking() -> Answer {
    Answer::Overloaded { detail: "an earlier line for the same aggregate was refused".into() }
}

/// A line in flight. If dropped without an answer, it counts as refused.
#[derive(Debug)]
pub(crate) struct LineInFlight {
    order: Arc<BatchOrder>,
    aggregate: AggregateId,
    answered: bool,
}

impl LineInFlight {
    /// Returns whether an earlier line of the same aggregate was refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.order.is_refused(&self.aggregate)
    }

    /// Refuses later lines of the same aggregate.
    pub(crate) fn refuse(&self) {
        self.order.refuse(&self.aggregate);
    }

    /// Assigns a line in flight to a connection once that is known. An error is the line's answer: an earlier line was
    /// refused meanwhile, or took another route.
    pub(crate) fn goes_by(&self, connection: u64) -> Result<(), Answer> {
        let mut lines = self.order.lines();
        if lines.refused.contains(&self.aggregate) {
            return Err(overtaking());
        }
        match lines.under_way.get_mut(&self.aggregate) {
            Some((route @ Route::Away(None), _)) => *route = Route::Away(Some(connection)),
            Some((Route::Away(Some(earlier)), _)) if *earlier == connection => {}
            _ => return Err(lines.refuse_other_route(&self.aggregate)),
        }
        Ok(())
    }

    pub(crate) fn end(mut self, is_refused: bool) {
        self.answered = !is_refused;
    }
}

impl Drop for LineInFlight {
    fn drop(&mut self) {
        let mut lines = self.order.lines();
        if !self.answered {
            lines.refused.insert(self.aggregate.clone());
        }
        if let EntryRef::Occupied(mut earlier) = lines.under_way.entry_ref(&self.aggregate) {
            earlier.get_mut().1 -= 1;
            if earlier.get().1 == 0 {
                earlier.remove();
            }
        }
    }
}

/// Answers a command by `decide`, in the order of its batch if it belongs to one. The caller pins `decide`, because an
/// async fn reserves space twice for a future that it takes by value.
pub(crate) async fn in_order(
    order: Option<&Arc<BatchOrder>>,
    aggregate: &AggregateId,
    route: Route,
    decide: Pin<&mut impl Future<Output = Answer>>,
) -> Answer {
    let Some(order) = order else { return decide.await };
    let line = match order.enter(aggregate, route) {
        Ok(line) => line,
        Err(answer) => return answer,
    };
    let answer = decide.await;
    line.end(answer.is_unavailable());
    answer
}

/// Batches whose lines arrive on one link to this instance.
#[derive(Debug)]
pub(crate) struct LinkBatches {
    /// Order of each batch, and the time after which no client waits for its lines.
    known: HashMap<u64, (Arc<BatchOrder>, Instant)>,
    /// Number of batches at which the next cleanup takes place.
    tidied_at: usize,
}

impl Default for LinkBatches {
    fn default() -> Self {
        Self { known: HashMap::new(), tidied_at: MIN_TIDIED }
    }
}

impl LinkBatches {
    /// Returns the order that all lines of a batch share, or `None` if too many batches are remembered.
    pub(crate) fn order(&mut self, name: u64, until: Instant) -> Option<Arc<BatchOrder>> {
        if let Some((order, last)) = self.known.get_mut(&name) {
            *last = until.max(*last);
            return Some(order.clone());
        }
        if self.known.len() >= self.tidied_at.min(MAX_BATCHES) {
            // An order with neither lines in flight nor refusals is equivalent to a new one.
            let now = Instant::now();
            self.known
                .retain(|_, (order, until)| Arc::strong_count(order) > 1 || (order.has_refused() && *until > now));
            self.tidied_at = MIN_TIDIED.max(self.known.len() * 2);
            if self.known.len() >= MAX_BATCHES {
                return None;
            }
        }
        let order = BatchOrder::named(name);
        self.known.insert(name, (order.clone(), until));
        Some(order)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use domain::AggregateType;

    use super::*;

    const AWAY_1: Route = Route::Away(Some(1));
    const AWAY_2: Route = Route::Away(Some(2));

    fn product(id: &str) -> AggregateId {
        AggregateId::new(AggregateType::Product, id).unwrap()
    }

    fn refused() -> Answer {
        Answer::NoOwner
    }

    fn taken() -> Answer {
        Answer::NoSuchCommand
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    async fn decide(order: &Arc<BatchOrder>, id: &str, route: Route, answer: Answer) -> bool {
        !in_order(Some(order), &product(id), route, pin!(async { answer })).await.is_unavailable()
    }

    #[tokio::test]
    async fn after_a_refused_line_no_other_of_the_same_aggregate_is_accepted() {
        let order = BatchOrder::new();
        assert!(decide(&order, "a", Route::Here, taken()).await);
        assert!(!decide(&order, "a", Route::Here, refused()).await);
        assert!(!decide(&order, "a", Route::Here, taken()).await);
        assert!(!decide(&order, "a", AWAY_1, taken()).await);
        assert!(decide(&order, "b", AWAY_1, taken()).await);
    }

    #[tokio::test]
    async fn a_line_takes_no_other_route_than_an_earlier_one_in_flight() {
        let order = BatchOrder::new();
        let first = order.enter(&product("a"), AWAY_1).unwrap();
        let mut second = order.enter(&product("a"), AWAY_1).unwrap();
        assert!(decide(&order, "b", AWAY_2, taken()).await);
        second.answered = true;
        drop(second);
        // The connection broke, and the first may be lost with it.
        assert!(!decide(&order, "a", AWAY_2, taken()).await);
        drop(first);
        assert!(!decide(&order, "a", AWAY_2, taken()).await);
    }

    #[tokio::test]
    async fn no_line_overtakes_one_whose_owner_is_being_looked_up() {
        let order = BatchOrder::new();
        let first = order.enter(&product("a"), Route::Away(None)).unwrap();
        let second = order.enter(&product("a"), Route::Away(None)).unwrap();
        first.goes_by(1).unwrap();
        second.goes_by(2).unwrap_err();
        assert!(!decide(&order, "a", AWAY_1, taken()).await, "the second was refused");
        let _other = order.enter(&product("b"), Route::Away(None)).unwrap();
        assert!(!decide(&order, "b", Route::Here, taken()).await);
        let first = order.enter(&product("c"), Route::Away(None)).unwrap();
        let second = order.enter(&product("c"), Route::Away(None)).unwrap();
        first.end(true);
        second.goes_by(1).unwrap_err();
    }

    #[tokio::test]
    async fn once_earlier_lines_are_answered_the_next_may_take_another_route() {
        let order = BatchOrder::new();
        assert!(decide(&order, "a", AWAY_1, taken()).await);
        assert!(decide(&order, "a", Route::Here, taken()).await);
        // The caller went away, so the outcome is unknown.
        drop(order.enter(&product("a"), Route::Here).unwrap());
        assert!(!decide(&order, "a", Route::Here, taken()).await);
    }

    #[tokio::test]
    async fn lines_in_several_messages_share_their_refusals() {
        let mut batches = LinkBatches::default();
        let first = batches.order(7, later()).unwrap();
        assert!(!decide(&first, "a", Route::Here, refused()).await);
        // Its answer is sent before the next message arrives.
        drop(first);
        for other in 0..5_000 {
            assert!(decide(&batches.order(1_000 + other, later()).unwrap(), "a", Route::Here, taken()).await);
        }
        assert!(!decide(&batches.order(7, later()).unwrap(), "a", Route::Here, taken()).await);
        assert!(batches.known.len() <= MIN_TIDIED, "batches without refusals are evicted");
    }

    #[tokio::test]
    async fn the_number_of_batches_that_a_link_remembers_is_bounded() {
        let mut batches = LinkBatches::default();
        let mut held = Vec::new();
        while let Some(order) = batches.order(held.len() as u64, later()) {
            held.push(order);
        }
        assert_eq!(held.len(), MAX_BATCHES);
        assert!(batches.order(0, later()).is_some(), "a known batch continues");
        held.clear();
        assert!(batches.order(u64::MAX, later()).is_some());
    }
}
