//! The ways to command-api, one for each partition of the log: steps to one aggregate are taken in the order in which
//! they came, and a partition that is away for a while holds up its own steps alone.
//!
//! Invariant: a chain of which a step was sent is followed to its end, whoever owns its event by now. What a step took is
//! given back by a later one, and nobody else may know that it was sent.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chassis::shutdown::Tasks;
use domain::reactions::{Next, Outcome};
use schemas::aggregate::AggregateId;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};

use super::chains::{Chain, End, Sender};
use super::commands::{Answered, Commands};
use crate::metrics::Metrics;

/// Lines in one request, and requests under way.
const MAX_LINES: usize = 1000;
const MAX_REQUESTS: usize = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// An aggregate that was refused this long ago is not held back any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// Nothing was answered for so long: command-api is away, and what waits is not to blame.
const SILENCE: Duration = Duration::from_secs(5);

type Ways = [mpsc::UnboundedSender<Waiting>];

/// Whoever holds it may send. The lanes end when nobody does.
#[derive(Clone)]
pub(crate) struct Lanes(Arc<Ways>);

/// The same, for as long as there are lanes.
#[derive(Clone)]
pub(crate) struct WeakLanes(Weak<Ways>);

/// A chain in the lane of its next step.
#[derive(Debug)]
struct Waiting {
    chain: Chain,
    target: AggregateId,
    /// A step of it was sent.
    has_begun: bool,
    refused_since: Option<Instant>,
}

/// What the lanes share.
struct Shared {
    commands: Commands,
    metrics: Arc<Metrics>,
    requests: Semaphore,
    started: Instant,
    /// When command-api last took or rejected a step, in milliseconds from there.
    answered_ms: AtomicU64,
}

struct Lane {
    incoming: mpsc::UnboundedReceiver<Waiting>,
    lanes: WeakLanes,
    shared: Arc<Shared>,
    queue: Queue,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Aggregates that were refused a moment ago: what waits for one of them stays in its order.
    held: HashMap<AggregateId, Held>,
}

struct Held {
    until: Instant,
    pause: Duration,
}

impl Lanes {
    pub(crate) fn start(commands: Commands, partitions: u32, metrics: Arc<Metrics>, tasks: &mut Tasks) -> Self {
        let requests = Semaphore::new(MAX_REQUESTS);
        let started = Instant::now();
        let shared = Arc::new(Shared { commands, metrics, requests, started, answered_ms: AtomicU64::new(0) });
        let (ways, ends): (Vec<_>, Vec<_>) = (0..partitions).map(|_| mpsc::unbounded_channel()).unzip();
        let lanes = Self(ways.into());
        for incoming in ends {
            let lane = Lane { incoming, lanes: lanes.weak(), shared: shared.clone(), queue: Queue::default() };
            tasks.spawn("lane", lane.run());
        }
        lanes
    }

    pub(crate) fn weak(&self) -> WeakLanes {
        WeakLanes(Arc::downgrade(&self.0))
    }

    pub(crate) fn begin(&self, chain: Chain) {
        self.put(chain, false);
    }

    fn put(&self, chain: Chain, has_begun: bool) {
        let (aggregate, id, _) = chain.step.command();
        let target = match AggregateId::of_log(aggregate, id) {
            Ok(target) => target,
            Err(error) => return chain.end(End::Failed(format!("{id:?} names nothing: {error}"))),
        };
        let partitions = u32::try_from(self.0.len()).expect("partitions were counted in 32 bits");
        let way = &self.0[target.partition(partitions) as usize];
        // A lane that is gone was ended with this process.
        let _ = way.send(Waiting { chain, target, has_begun, refused_since: None });
    }
}

impl WeakLanes {
    pub(crate) fn upgrade(&self) -> Option<Lanes> {
        self.0.upgrade().map(Lanes)
    }
}

impl Lane {
    async fn run(mut self) {
        loop {
            let ready_at = self.queue.ready_at(Instant::now());
            tokio::select! {
                waiting = self.incoming.recv() => match waiting {
                    Some(waiting) => self.queue.waiting.push_back(waiting),
                    None => return,
                },
                () = sleep_until(ready_at.unwrap_or_else(Instant::now)), if ready_at.is_some() => {}
            }
            while let Ok(waiting) = self.incoming.try_recv() {
                self.queue.waiting.push_back(waiting);
            }
            self.take_steps().await;
        }
    }

    /// Those that are ready, in one request.
    async fn take_steps(&mut self) {
        let permit = self.shared.requests.acquire().await.expect("it is never closed");
        let mut taken = self.queue.take(MAX_LINES, Instant::now());
        taken.retain_mut(Waiting::may_be_sent);
        if taken.is_empty() {
            return;
        }
        let answers = self.shared.commands.send(taken.iter().map(|waiting| &waiting.chain)).await;
        drop(permit);
        let mut broken: HashMap<AggregateId, String> = HashMap::new();
        let mut later = Vec::new();
        let is_away = |answer: &Answered| *answer == Answered::Away;
        for (waiting, answer) in taken.into_iter().zip(answers) {
            self.shared.metrics.step_answered(&answer);
            if !matches!(answer, Answered::Later | Answered::Away) {
                self.shared.answered();
                self.queue.held.remove(&waiting.target);
            }
            match answer {
                Answered::Accepted => self.follow(waiting, Outcome::Accepted),
                Answered::Rejected(rule) => self.follow(waiting, Outcome::Rejected(&rule)),
                Answered::Later | Answered::Away => later.push((waiting, is_away(&answer))),
                Answered::Refused(reason) => waiting.chain.end(End::Failed(reason)),
                Answered::Quarantined(reason) => {
                    waiting.chain.end(End::Failed(reason.clone()));
                    broken.insert(waiting.target, reason);
                }
            }
        }
        later.retain(|(waiting, _)| match broken.get(&waiting.target) {
            // They were refused for standing behind it.
            Some(reason) => {
                waiting.chain.end(End::Failed(reason.clone()));
                false
            }
            None => true,
        });
        self.put_back(later);
    }

    fn follow(&self, Waiting { chain, target, .. }: Waiting, outcome: Outcome<'_>) {
        match chain.step.then(outcome) {
            Next::Step(step) => {
                // Without lanes this process ends: whoever begins the event again takes the step again.
                if let Some(lanes) = self.lanes.upgrade() {
                    lanes.put(Chain { step, ..chain }, true);
                }
            }
            Next::Done => chain.end(End::Done),
            Next::NotDue => chain.end(End::NotDue),
            Next::Stuck => {
                let Outcome::Rejected(rule) = outcome else { unreachable!("what is accepted goes on") };
                chain.end(End::Failed(format!("{} rejects it: {rule}", target.as_str())));
            }
        }
    }

    /// In front, in their order, for another try; each with whether its partition is away.
    fn put_back(&mut self, later: Vec<(Waiting, bool)>) {
        let now = Instant::now();
        let is_silent = self.shared.is_silent();
        for (mut waiting, is_away) in later.into_iter().rev() {
            if let Some(refused_for) = waiting.late(now, is_away).filter(|_| !is_silent) {
                let reason = format!("{} has not taken it for {} s", waiting.target.as_str(), refused_for.as_secs());
                waiting.chain.end(End::Late(reason));
                continue;
            }
            self.queue.hold(&waiting.target, now);
            self.queue.waiting.push_front(waiting);
        }
    }
}

impl Waiting {
    /// Once sent, it is sent again and followed to its end.
    fn may_be_sent(&mut self) -> bool {
        self.has_begun |= self.chain.sender.lease.as_ref().is_none_or(|lease| lease.holds());
        if !self.has_begun {
            self.chain.end(End::Dropped);
        }
        self.has_begun
    }
}

impl Waiting {
    /// Counts another refusal. Gives for how long it has been refused, if that is more than its sender's patience.
    fn late(&mut self, now: Instant, is_away: bool) -> Option<Duration> {
        let Sender { patience, waits_for_partition, .. } = self.chain.sender;
        if is_away && waits_for_partition {
            self.refused_since = None;
            return None;
        }
        let refused_for = now - *self.refused_since.get_or_insert(now);
        (refused_for > patience).then_some(refused_for)
    }
}

impl Shared {
    fn answered(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.answered_ms.store(now, Ordering::Relaxed);
    }

    fn is_silent(&self) -> bool {
        let answered = Duration::from_millis(self.answered_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(answered) > SILENCE
    }
}

impl Queue {
    /// `None`: nothing waits.
    fn ready_at(&self, now: Instant) -> Option<Instant> {
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

    fn take(&mut self, max: usize, now: Instant) -> Vec<Waiting> {
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

    /// Several of one aggregate that are refused together hold it once.
    fn hold(&mut self, target: &AggregateId, now: Instant) {
        let held = self.held.entry(target.clone()).or_insert(Held { until: now, pause: FIRST_PAUSE });
        if held.until <= now {
            held.until = now + held.pause;
            held.pause = (held.pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::TimeMs;
    use domain::ids::{OrderId, ProductId};
    use domain::reactions::Step;

    use super::super::chains::{Ended, Lease};
    use super::*;

    /// With what tells of its end.
    fn waiting(product: &str, order: &str, lease: Option<Arc<Lease>>) -> (Waiting, mpsc::UnboundedReceiver<Ended>) {
        let (ended, end) = mpsc::unbounded_channel();
        let step = Step::Release { product: ProductId(product.into()), order: OrderId(order.into()) };
        let (source, patience) = ((0, 0), Duration::ZERO);
        let sender = Sender { source, ended, lease, patience, waits_for_partition: false };
        let chain = Chain { step, at: TimeMs(0), cause: "0-0-1".into(), sender };
        let target = AggregateId::new(domain::AggregateType::Product, product).unwrap();
        (Waiting { chain, target, has_begun: false, refused_since: None }, end)
    }

    fn orders(all: &[Waiting]) -> Vec<String> {
        let order = |waiting: &Waiting| match &waiting.chain.step {
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
    fn what_is_refused_again_waits_longer_up_to_a_second() {
        let mut queue = Queue::default();
        let mut now = Instant::now();
        let target = AggregateId::new(domain::AggregateType::Product, "a").unwrap();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            queue.hold(&target, now);
            // Others of the same request, refused with it.
            queue.hold(&target, now);
            let until = queue.held[&target].until;
            pauses.push(until - now);
            now = until;
        }
        assert_eq!(pauses[..3], [10, 20, 40].map(Duration::from_millis));
        assert_eq!(pauses[9], LONGEST_PAUSE);
    }

    #[test]
    fn time_in_which_the_partition_is_away_is_not_counted_where_it_is_waited_for() {
        let now = Instant::now();
        let after = |secs| now + Duration::from_secs(secs);
        let (mut waiting, _end) = waiting("a", "1", None);
        waiting.chain.sender.patience = Duration::from_secs(5);
        waiting.chain.sender.waits_for_partition = true;
        assert_eq!(waiting.late(now, false), None);
        assert_eq!(waiting.late(after(100), true), None);
        assert_eq!(waiting.late(after(200), false), None, "it is back, and refuses for the first time");
        assert_eq!(waiting.late(after(206), false), Some(Duration::from_secs(6)));
        waiting.chain.sender.waits_for_partition = false;
        assert_eq!(waiting.late(after(207), true), Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_chain_begins_while_its_lease_holds_and_then_goes_on_without_it() {
        let lease = Arc::new(Lease::new(std::time::Instant::now()));
        let ((mut begun, _end), (mut not_begun, mut end)) =
            (waiting("a", "1", Some(lease.clone())), waiting("a", "2", Some(lease.clone())));
        assert!(begun.may_be_sent());
        lease.end();
        assert!(begun.may_be_sent());
        assert!(!not_begun.may_be_sent());
        assert_eq!(end.try_recv().unwrap().how, End::Dropped);
    }
}
