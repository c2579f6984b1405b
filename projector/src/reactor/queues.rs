//! Queues of steps to command-api, one per partition of the log. Steps to one aggregate are sent in order of arrival,
//! and an unavailable partition delays only its own steps. A queue has one request in flight. The number over all
//! queues is limited, but a request that is not answered promptly stops counting, and unavailable partitions are probed
//! under a limit of their own.
//!
//! Invariant: only an answer ends a saga that has begun, unless its sender has a patience. It is followed to its end,
//! whichever process owns its event by then: a later step gives back what an earlier one took, and no other process may
//! know of the earlier one.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use chassis::shutdown::Tasks;
use domain::reactions::{Next, Outcome, Step};
use schemas::aggregate::AggregateId;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{Answered, CommandClient};
use super::queue::{FIRST_PAUSE, Held, Known, Queue, Slot, Waiting};
use super::sagas::{Saga, SagaEnd};
use crate::metrics::Metrics;

/// Maximum number of lines in a request, and of requests in flight.
const MAX_LINES: usize = 1000;
const MAX_REQUESTS: usize = 8;
/// Maximum number of lines in a request to an unavailable partition, and of such requests in flight.
const MAX_PROBE_LINES: usize = 16;
const MAX_PROBES: usize = 32;
/// Time after which a request no longer counts against [`MAX_REQUESTS`].
const PROMPT: Duration = Duration::from_millis(500);
/// Maximum number of sagas in one queue. At this length it blocks the source partitions whose events target it.
pub(super) const MAX_SAGAS: usize = 16_384;

type Entrances = [Entrance];

/// Sending end of a queue.
struct Entrance {
    incoming: mpsc::UnboundedSender<Waiting>,
    known: Arc<Known>,
}

/// Handle to all queues, which stop once the last clone is dropped.
#[derive(Clone)]
pub(crate) struct PartitionQueues(Arc<Entrances>);

/// Handle that does not keep the queues running.
#[derive(Clone)]
pub(crate) struct WeakQueues(Weak<Entrances>);

/// State that all queues share.
struct Shared {
    commands: CommandClient,
    metrics: Arc<Metrics>,
    requests: Semaphore,
    /// Permits for requests to unavailable partitions.
    probes: Semaphore,
}

struct PartitionQueue {
    incoming: mpsc::UnboundedReceiver<Waiting>,
    queues: WeakQueues,
    shared: Arc<Shared>,
    queue: Queue,
    known: Arc<Known>,
    /// Backoff of the partition while it is unavailable.
    away: Option<Held>,
}

impl PartitionQueues {
    pub(crate) fn start(commands: CommandClient, partitions: u32, metrics: Arc<Metrics>, tasks: &mut Tasks) -> Self {
        let (requests, probes) = (Semaphore::new(MAX_REQUESTS), Semaphore::new(MAX_PROBES));
        let shared = Arc::new(Shared { commands, metrics, requests, probes });
        let way = |_| {
            // Those who begin sagas bound it: each limits how many of its own are open. A send must not wait, because
            // the queues send to each other.
            let (incoming, end) = mpsc::unbounded_channel();
            (Entrance { incoming, known: Arc::default() }, end)
        };
        let (ways, ends): (Vec<_>, Vec<_>) = (0..partitions).map(way).unzip();
        let queues = Self(ways.into());
        for (way, incoming) in queues.0.iter().zip(ends) {
            let (queue, known) = (Queue::default(), way.known.clone());
            let queue =
                PartitionQueue { incoming, queues: queues.weak(), shared: shared.clone(), queue, known, away: None };
            tasks.spawn("lane", queue.run());
        }
        queues
    }

    pub(crate) fn weak(&self) -> WeakQueues {
        WeakQueues(Arc::downgrade(&self.0))
    }

    pub(crate) fn begin(&self, saga: Saga) {
        self.put(saga, false);
    }

    fn put(&self, saga: Saga, has_begun: bool) {
        let (target, partition) = match self.target(&saga.step) {
            Ok(target) => target,
            Err(reason) => return saga.end(SagaEnd::Failed(reason)),
        };
        let way = &self.0[partition as usize];
        let (since, slot) = (Instant::now(), Slot::take(&way.known));
        // Sending fails only if this process is stopping.
        let _ = way.incoming.send(Waiting { saga, target, has_begun, since, _slot: slot });
    }

    /// Returns the aggregate and the partition that a step targets.
    fn target(&self, step: &Step) -> Result<(AggregateId, u32), String> {
        let (aggregate, id, _) = step.command();
        let target = AggregateId::of_log(aggregate, id).map_err(|error| format!("{id:?} is invalid: {error}"))?;
        let partitions = u32::try_from(self.0.len()).expect("the number of partitions fits in 32 bits");
        let partition = target.partition(partitions);
        Ok((target, partition))
    }

    /// Returns a partition that one of the steps targets and whose queue is full.
    pub(super) fn full<'a>(&self, steps: impl IntoIterator<Item = &'a Step>) -> Option<u32> {
        let partitions = steps.into_iter().filter_map(|step| Some(self.target(step).ok()?.1));
        partitions.into_iter().find(|partition| self.sagas(*partition) >= MAX_SAGAS)
    }

    /// Returns the number of sagas whose next step targets this partition.
    pub(super) fn sagas(&self, partition: u32) -> usize {
        self.0[partition as usize].known.sagas.load(Ordering::Relaxed)
    }

    /// Returns whether the step's partition is unavailable and enough steps wait for it to notice its return.
    pub(super) fn is_away(&self, step: &Step) -> bool {
        let Ok((_, partition)) = self.target(step) else { return false };
        let known = &self.0[partition as usize].known;
        known.is_away.load(Ordering::Relaxed) && known.sagas.load(Ordering::Relaxed) >= MAX_PROBE_LINES
    }
}

impl WeakQueues {
    pub(crate) fn upgrade(&self) -> Option<PartitionQueues> {
        self.0.upgrade().map(PartitionQueues)
    }
}

impl PartitionQueue {
    async fn run(mut self) {
        loop {
            let ready_at = self.ready_at(Instant::now());
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
            if self.away.as_ref().is_none_or(|away| away.until <= Instant::now()) {
                self.take_steps().await;
            }
        }
    }

    /// Returns when the next request is due; `None`: nothing waits.
    fn ready_at(&self, now: Instant) -> Option<Instant> {
        match &self.away {
            Some(away) if away.until > now => (!self.queue.waiting.is_empty()).then_some(away.until),
            Some(_) | None => self.queue.ready_at(now),
        }
    }

    /// Sends the steps that are ready in one request, and handles the answers.
    async fn take_steps(&mut self) {
        let is_away = self.away.is_some();
        let requests = if is_away { &self.shared.probes } else { &self.shared.requests };
        let mut permit = Some(requests.acquire().await.expect("the semaphore is never closed"));
        if is_away {
            self.queue.give_up(Instant::now());
        }
        let mut taken = self.queue.take(if is_away { MAX_PROBE_LINES } else { MAX_LINES }, Instant::now());
        taken.retain_mut(Waiting::may_be_sent);
        if taken.is_empty() {
            return;
        }
        let answers = {
            let mut sent = pin!(self.shared.commands.send(taken.iter().map(|waiting| &waiting.saga)));
            match timeout(PROMPT, &mut sent).await {
                Ok(answers) => answers,
                Err(_) => {
                    permit = permit.filter(|_| is_away);
                    sent.await
                }
            }
        };
        drop(permit);
        self.note(&answers);
        self.go_on(taken, answers);
    }

    /// Records whether the partition is unavailable: a step got [`Answered::Away`], and none was decided.
    fn note(&mut self, answers: &[Answered]) {
        let decides = answers.iter().any(|answer| !matches!(answer, Answered::Later | Answered::Away));
        let is_away = !decides && answers.contains(&Answered::Away);
        let pause = self.away.take().map_or(FIRST_PAUSE, |away| away.pause);
        self.away = is_away.then(|| Held::new(Instant::now(), pause));
        self.known.is_away.store(is_away, Ordering::Relaxed);
    }

    fn go_on(&mut self, taken: Vec<Waiting>, answers: Vec<Answered>) {
        let mut broken: HashMap<AggregateId, String> = HashMap::new();
        let mut later = Vec::new();
        for (waiting, answer) in taken.into_iter().zip(answers) {
            self.shared.metrics.step_answered(answer.outcome());
            if !matches!(answer, Answered::Later | Answered::Away) {
                self.queue.held.remove(&waiting.target);
            }
            match answer {
                Answered::Accepted { is_confirmed } => self.follow(waiting, Outcome::Accepted { is_confirmed }),
                Answered::Rejected(rule) => self.follow(waiting, Outcome::Rejected(&rule)),
                Answered::Later | Answered::Away => later.push(waiting),
                Answered::Refused(reason) => waiting.saga.end(SagaEnd::Failed(reason)),
                Answered::Quarantined(reason) => {
                    waiting.saga.end(SagaEnd::Failed(reason.clone()));
                    broken.insert(waiting.target, reason);
                }
            }
        }
        later.retain(|waiting| match broken.get(&waiting.target) {
            // They were refused only because they were queued behind it.
            Some(reason) => {
                waiting.saga.end(SagaEnd::Failed(reason.clone()));
                false
            }
            None => true,
        });
        self.queue.put_back(later, Instant::now());
    }

    fn follow(&self, Waiting { saga, target, .. }: Waiting, outcome: Outcome<'_>) {
        match saga.step.next(outcome) {
            Next::Step(step) => {
                // Without queues this process is stopping: the event's next owner sends the step again.
                if let Some(queues) = self.queues.upgrade() {
                    queues.put(Saga { step, ..saga }, true);
                }
            }
            Next::Done => saga.end(SagaEnd::Done),
            Next::NotDue => saga.end(SagaEnd::NotDue),
            Next::Stuck => {
                let Outcome::Rejected(rule) = outcome else { unreachable!("an accepted step is never stuck") };
                saga.end(SagaEnd::Failed(format!("{} rejected the step: {rule}", target.as_str())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chassis::telemetry::Telemetry;
    use domain::TimeMs;
    use domain::ids::{OrderId, ProductId};

    use super::super::sagas::Origin;
    use super::*;
    use crate::config::Config;

    /// Answers like a command-api with one suspended instance: steps to its partitions fail after 3 s.
    async fn stand_in(body: String) -> String {
        let is_away = body.contains("away");
        if is_away {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        let answer = if is_away { r#"{"status":503,"type":"/problems/outcome-unknown"}"# } else { r#"{"status":200}"# };
        body.lines().map(|_| format!("{answer}\n")).collect()
    }

    #[tokio::test]
    async fn partitions_that_are_away_leave_the_others_their_requests() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().route("/v1/commands", axum::routing::post(stand_in));
        tokio::spawn(axum::serve(listener, router).into_future());
        let env = [
            ("POSTGRES_URL", "postgres://none"),
            ("REDIS_URL", "redis://none"),
            ("REACTOR_COMMAND_URLS", &url),
            ("SERVICE_TOKEN", "token-of-the-tests"),
        ];
        let config = Config::from_env(&env.into_iter().collect()).unwrap();
        let metrics = Arc::new(Metrics::new(&Telemetry::new("lanes").unwrap()));
        let (mut tasks, partitions) = (Tasks::new(), 4 * MAX_REQUESTS as u32);
        let queues =
            PartitionQueues::start(CommandClient::of(&config).unwrap().unwrap(), partitions, metrics, &mut tasks);
        let partition = |name: &str| schemas::aggregate::partition(domain::AggregateType::Product, name, partitions);
        let begin = |product: String| {
            let (ended, end) = mpsc::unbounded_channel();
            let step = Step::Release { product: ProductId(product.as_str().into()), order: OrderId("o".into()) };
            let sender = Origin { source: (0, 0), ended, lease: None, patience: None };
            queues.begin(Saga { step, at: TimeMs(0), cause: "0-0-1".into(), sender });
            end
        };
        // All partitions but the last are unavailable.
        let away = (0..1000).map(|n| format!("away-{n}")).filter(|name| partition(name) < partitions - 1);
        let mut ends: Vec<_> = away.map(&begin).collect();
        let started = Instant::now();
        let here: Vec<_> =
            (0..).map(|n| format!("p-{n}")).filter(|name| partition(name) == partitions - 1).take(10).collect();
        for product in here {
            assert_eq!(begin(product).recv().await.unwrap().how, SagaEnd::Done);
        }
        // Under a common limit, each would have waited for several requests of 3 s.
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        assert!(ends.iter_mut().all(|end| end.try_recv().is_err()), "no waiting saga has ended");
        assert!(queues.sagas(partition("away-0").min(partitions - 2)) > 0);
    }
}
