//! Steps that wait for one partition, in order, with the backoff of refused aggregates.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use schemas::aggregate::AggregateId;
use tokio::time::Instant;

use super::sagas::{Origin, Saga, SagaEnd};

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Time after which the backoff of a refused aggregate is reset.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// State of a queue that is visible outside of it.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) sagas: AtomicUsize,
    pub(super) is_away: AtomicBool,
}

/// Slot of a saga in a queue, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Known>);

/// A saga in the queue of its next step.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) saga: Saga,
    pub(super) target: AggregateId,
    /// Set once a step of the saga has been sent.
    pub(super) has_begun: bool,
    /// Time at which the step entered the queue.
    pub(super) since: Instant,
    pub(super) _slot: Slot,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Waiting>,
    /// Aggregates in backoff after a refusal. Steps to one of them stay in order.
    pub(super) held: HashMap<AggregateId, Held>,
}

pub(super) struct Held {
    pub(super) until: Instant,
    pub(super) pause: Duration,
}

impl Slot {
    pub(super) fn take(known: &Arc<Known>) -> Self {
        known.sagas.fetch_add(1, Ordering::Relaxed);
        Self(known.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.sagas.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Waiting {
    /// Returns whether the step may be sent: its saga has begun, or its lease holds. Otherwise ends the saga.
    pub(super) fn may_be_sent(&mut self) -> bool {
        self.has_begun |= self.saga.sender.lease.as_ref().is_none_or(|lease| lease.holds());
        if !self.has_begun {
            self.saga.end(SagaEnd::Dropped);
        }
        self.has_begun
    }

    /// Returns the end of a saga that waits no longer: its lease ended before it began, or its sender lost patience.
    fn given_up(&self, now: Instant) -> Option<SagaEnd> {
        let Origin { lease, patience, .. } = &self.saga.sender;
        if !self.has_begun && lease.as_ref().is_some_and(|lease| lease.has_ended()) {
            return Some(SagaEnd::Dropped);
        }
        let waited = now.duration_since(self.since);
        let late = || format!("{} has not accepted the step for {} s", self.target.as_str(), waited.as_secs());
        patience.is_some_and(|patience| waited > patience).then(|| SagaEnd::Late(late()))
    }
}

impl Held {
    pub(super) fn new(now: Instant, pause: Duration) -> Self {
        Self { until: now + pause, pause: (pause * 2).min(LONGEST_PAUSE) }
    }
}

impl Queue {
    /// Returns when the first of the steps may be sent; `None`: nothing waits.
    pub(super) fn ready_at(&self, now: Instant) -> Option<Instant> {
        let at = |waiting: &Waiting| self.held.get(&waiting.target).map_or(now, |held| held.until.max(now));
        let mut earliest: Option<Instant> = None;
        for at in self.waiting.iter().map(at) {
            earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
            if at == now {
                break;
            }
        }
        earliest
    }

    pub(super) fn take(&mut self, max: usize, now: Instant) -> Vec<Waiting> {
        if self.held.is_empty() {
            return self.waiting.drain(..max.min(self.waiting.len())).collect();
        }
        let (mut taken, mut left) = (Vec::new(), VecDeque::new());
        for waiting in std::mem::take(&mut self.waiting) {
            let is_held = self.held.get(&waiting.target).is_some_and(|held| held.until > now);
            if is_held || taken.len() == max {
                left.push_back(waiting);
            } else {
                taken.push(waiting);
            }
        }
        self.waiting = left;
        self.held.retain(|_, held| held.until + FORGOTTEN_AFTER > now);
        taken
    }

    /// Puts refused steps back to the front, in order, for a retry.
    pub(super) fn put_back(&mut self, later: Vec<Waiting>, now: Instant) {
        for waiting in later.into_iter().rev() {
            if let Some(how) = waiting.given_up(now) {
                waiting.saga.end(how);
                continue;
            }
            self.hold(&waiting.target, now);
            self.waiting.push_front(waiting);
        }
    }

    /// Ends sagas that wait no longer, which would otherwise stay until the partition is back.
    pub(super) fn give_up(&mut self, now: Instant) {
        self.waiting.retain(|waiting| match waiting.given_up(now) {
            Some(how) => {
                waiting.saga.end(how);
                false
            }
            None => true,
        });
    }

    /// Starts or extends an aggregate's backoff, once for all steps that were refused together.
    fn hold(&mut self, target: &AggregateId, now: Instant) {
        let held = self.held.entry(target.clone()).or_insert(Held { until: now, pause: FIRST_PAUSE });
        if held.until <= now {
            *held = Held::new(now, held.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::TimeMs;
    use domain::ids::{OrderId, ProductId};
    use domain::reactions::Step;
    use tokio::sync::mpsc;

    use super::super::sagas::{EndedSaga, Lease};
    use super::*;

    /// Returns a queued saga, and the receiver of its end.
    fn waiting(product: &str, order: &str, lease: Option<Arc<Lease>>) -> (Waiting, mpsc::UnboundedReceiver<EndedSaga>) {
        let (ended, end) = mpsc::unbounded_channel();
        let step = Step::Release { product: ProductId(product.into()), order: OrderId(order.into()) };
        let sender = Origin { source: (0, 0), ended, lease, patience: None };
        let saga = Saga { step, at: TimeMs(0), cause: "0-0-1".into(), sender };
        let target = AggregateId::new(domain::AggregateType::Product, product).unwrap();
        let slot = Slot::take(&Arc::default());
        (Waiting { saga, target, has_begun: false, since: Instant::now(), _slot: slot }, end)
    }

    fn orders(all: &[Waiting]) -> Vec<String> {
        let order = |waiting: &Waiting| match &waiting.saga.step {
            Step::Release { order, .. } => order.0.to_string(),
            other => panic!("{other:?}"),
        };
        all.iter().map(order).collect()
    }

    #[test]
    fn an_aggregate_that_was_refused_holds_up_its_own_steps_alone_and_they_keep_their_order() {
        let mut queue = Queue::default();
        let now = Instant::now();
        for (product, order) in [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4")] {
            queue.waiting.push_back(waiting(product, order, None).0);
        }
        let taken = queue.take(1, now);
        assert_eq!(orders(&taken), ["1"]);
        for refused in taken {
            queue.hold(&refused.target, now);
            queue.waiting.push_front(refused);
        }
        assert_eq!(queue.ready_at(now), Some(now));
        assert_eq!(orders(&queue.take(9, now)), ["2", "4"]);
        assert_eq!(queue.ready_at(now), Some(now + FIRST_PAUSE));
        assert_eq!(orders(&queue.take(9, now)), [""; 0]);
        assert_eq!(orders(&queue.take(9, now + FIRST_PAUSE)), ["1", "3"]);
        assert_eq!(queue.ready_at(now), None);
    }

    #[test]
    fn steps_that_are_refused_again_wait_longer_up_to_a_second() {
        let mut queue = Queue::default();
        let mut now = Instant::now();
        let target = AggregateId::new(domain::AggregateType::Product, "a").unwrap();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            queue.hold(&target, now);
            // Other steps of the same request, refused together.
            queue.hold(&target, now);
            let until = queue.held[&target].until;
            pauses.push(until - now);
            now = until;
        }
        assert_eq!(pauses[..3], [10, 20, 40].map(Duration::from_millis));
        assert_eq!(pauses[9], LONGEST_PAUSE);
    }

    #[test]
    fn a_saga_is_given_up_only_if_its_sender_has_a_patience_even_while_no_step_is_sent() {
        let lease = Arc::new(Lease::new(std::time::Instant::now()));
        let (mut patient, mut hasty, mut left) =
            (waiting("a", "1", None), waiting("b", "2", None), waiting("c", "3", Some(lease.clone())));
        hasty.0.saga.sender.patience = Some(Duration::from_secs(10));
        let (since, day) = (patient.0.since, Duration::from_secs(24 * 60 * 60));
        patient.0.has_begun = true;
        let mut queue = Queue::default();
        queue.put_back(vec![patient.0, hasty.0, left.0], since + Duration::from_secs(9));
        queue.give_up(since + Duration::from_secs(9));
        assert_eq!(orders(queue.waiting.make_contiguous()), ["1", "2", "3"]);
        lease.end();
        queue.give_up(since + day);
        assert_eq!(orders(queue.waiting.make_contiguous()), ["1"]);
        assert!(matches!(hasty.1.try_recv().unwrap().how, SagaEnd::Late(_)));
        assert_eq!(left.1.try_recv().unwrap().how, SagaEnd::Dropped);
        let refused = queue.waiting.drain(..).collect();
        queue.put_back(refused, since + day);
        assert_eq!(queue.waiting.len(), 1);
        assert!(patient.1.try_recv().is_err());
    }

    #[test]
    fn a_saga_begins_while_its_lease_holds_and_then_goes_on_without_it() {
        let lease = Arc::new(Lease::new(std::time::Instant::now()));
        let ((mut begun, _end), (mut not_begun, mut end)) =
            (waiting("a", "1", Some(lease.clone())), waiting("a", "2", Some(lease.clone())));
        assert!(begun.may_be_sent());
        lease.end();
        assert!(begun.may_be_sent());
        assert!(!not_begun.may_be_sent());
        assert_eq!(end.try_recv().unwrap().how, SagaEnd::Dropped);
    }
}
