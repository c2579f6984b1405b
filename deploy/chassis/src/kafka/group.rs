//! A consumer group that distributes the partitions over the instances of a service and detects dead instances.
//!
//! The assignment is a hint about which instance should own a partition; fencing happens elsewhere. The group is joined
//! on an empty topic with as many partitions as the log has, so that no record is ever read through it.
//!
//! Invariant: the group is polled only while the runtime's tasks make progress: an instance that hangs loses its
//! membership, although the Kafka client's own thread would keep sending heartbeats.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::KafkaSettings;
use crate::shutdown::Shutdown;

const POLL: Duration = Duration::from_millis(100);
/// Interval between the ticks that prove the runtime's progress.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// Time without a tick after which the runtime counts as hung.
const HANGS_AFTER: Duration = Duration::from_secs(2);
/// Upper bound of a rebalance, which a dead member delays by the session timeout of six seconds.
const REBALANCES_WITHIN: Duration = Duration::from_secs(8);
/// Interval at which a member that has left looks whether the rebalance has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// The moment at which a member learns that the group takes partitions away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    /// The beginning of the rebalance: for services whose members request partitions from their previous owner.
    AtOnce,
    /// The end of the rebalance, up to a second later, when others have the partitions, so that these never stand still:
    /// for services in which two members may have a partition for a moment.
    AtTheEnd,
}

/// The partitions that this instance should take; `None` before the group's first assignment.
pub type Assignment = Option<Arc<BTreeSet<u32>>>;

/// Waits until the assignment changes or shutdown is requested.
pub async fn changed(assignment: &mut watch::Receiver<Assignment>, shutdown: &Shutdown) {
    tokio::select! {
        // The group, which owns the sender, stops after the tasks that follow its assignment.
        Ok(()) = assignment.changed() => {}
        () = shutdown.requested() => {}
    }
}

#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("creating the group's consumer failed")]
    Client(#[from] KafkaError),
    #[error("starting the group's thread failed")]
    Thread(#[from] std::io::Error),
}

/// This instance's membership. Dropping it leaves the group shortly afterwards.
#[derive(Debug)]
pub struct Group {
    kafka: KafkaSettings,
    name: String,
    stopped: Arc<AtomicBool>,
    ticking: AbortHandle,
    /// Thread that polls the group; `None` after leaving it.
    thread: Option<JoinHandle<()>>,
}

/// Heartbeat that a task of the runtime ticks and the group's thread checks.
#[derive(Debug)]
struct Heartbeat {
    began: Instant,
    last_ms: AtomicU64,
}

struct Listener {
    losses: Losses,
    /// Number of assignments after which the member's partitions are announced.
    missing: AtomicU8,
}

impl Listener {
    /// A member that is to lose partitions revokes them, is assigned what it keeps, and joins again for the second
    /// round, in which the others are assigned what it has revoked.
    const AFTER_A_REVOCATION: u8 = 2;

    fn rebalances(&self) -> bool {
        self.missing.load(Ordering::Relaxed) > 0
    }
}

impl ClientContext for Listener {}

impl ConsumerContext for Listener {
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let missing = match rebalance {
            Rebalance::Assign(_) => self.missing.load(Ordering::Relaxed).saturating_sub(1),
            // A member that was excluded has lost them already.
            Rebalance::Revoke(_) if self.losses == Losses::AtOnce || consumer.assignment_lost() => 0,
            Rebalance::Revoke(_) => Self::AFTER_A_REVOCATION,
            Rebalance::Error(_) => return,
        };
        self.missing.store(missing, Ordering::Relaxed);
    }
}

impl Group {
    /// Joins the group. A dedicated thread sends each new assignment to `assignment`. Call this on the runtime whose
    /// progress the membership depends on.
    pub fn join(
        kafka: &KafkaSettings,
        client_id: &str,
        group: &str,
        topic: &str,
        losses: Losses,
        assignment: watch::Sender<Assignment>,
    ) -> Result<Self, GroupError> {
        let context = Listener { losses, missing: AtomicU8::new(1) };
        let consumer: BaseConsumer<Listener> = kafka.member(client_id, group).create_with_context(context)?;
        consumer.subscribe(&[topic])?;
        let stopped = Arc::new(AtomicBool::new(false));
        let heartbeat = Arc::new(Heartbeat { began: Instant::now(), last_ms: AtomicU64::new(0) });
        let thread = std::thread::Builder::new().name("group".into()).spawn({
            let (stopped, heartbeat) = (stopped.clone(), heartbeat.clone());
            move || poll(consumer, &stopped, &heartbeat, &assignment)
        })?;
        // Ends when the group is dropped.
        let ticking = tokio::spawn(async move {
            let mut interval = tokio::time::interval(HEARTBEAT);
            loop {
                interval.tick().await;
                heartbeat.tick();
            }
        });
        let (kafka, name) = (kafka.clone(), group.to_owned());
        Ok(Self { kafka, name, stopped, ticking: ticking.abort_handle(), thread: Some(thread) })
    }

    /// Leaves the group and waits until the broker knows. Blocks: call it from a plain thread.
    pub fn leave(mut self) {
        self.end();
    }

    /// Leaves the group and waits until its other members, if there are any, have been assigned this one's partitions.
    /// Does not wait if the broker does not answer. Blocks: call it from a plain thread.
    pub fn hand_over(mut self) {
        self.end();
        let begun = Instant::now();
        let outcome = self.kafka.admin("group").create().and_then(|observer: BaseConsumer| {
            while begun.elapsed() < REBALANCES_WITHIN {
                let found = observer.fetch_group_list(Some(&self.name), ANSWERS_WITHIN)?;
                if !found.groups().iter().any(|group| group.state().ends_with("Rebalance")) {
                    return Ok(());
                }
                std::thread::sleep(LOOK_EVERY);
            }
            Ok(())
        });
        if let Err(error) = outcome {
            tracing::warn!(error = %error, "the broker does not tell whether other instances have the partitions");
        }
    }

    fn end(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the group's thread panicked");
        }
    }
}

/// Stops the thread, which then leaves the group.
impl Drop for Group {
    fn drop(&mut self) {
        self.ticking.abort();
        self.stopped.store(true, Ordering::Relaxed);
    }
}

fn poll(
    consumer: BaseConsumer<Listener>,
    stopped: &AtomicBool,
    heartbeat: &Heartbeat,
    assignment: &watch::Sender<Assignment>,
) {
    // When the last rebalance had ended; `None` before the first assignment.
    let mut settled = None::<Instant>;
    while !stopped.load(Ordering::Relaxed) {
        if heartbeat.is_silent() {
            std::thread::sleep(POLL);
            continue;
        }
        if let Some(Err(error)) = consumer.poll(POLL) {
            tracing::debug!(error = %error, "polling the group failed; remaining a member");
        }
        match consumer.context().rebalances() {
            false => settled = Some(Instant::now()),
            true if settled.is_none_or(|at| at.elapsed() < REBALANCES_WITHIN) => continue,
            true => {}
        }
        let Ok(assigned) = consumer.assignment() else { continue };
        let now: BTreeSet<u32> = assigned.elements().iter().map(|place| place.partition().cast_unsigned()).collect();
        assignment.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&now);
            if changed {
                tracing::info!(partitions = ?now, "partitions assigned by the group");
                *known = Some(Arc::new(now));
            }
            changed
        });
    }
    // Dropping the consumer leaves the group, which rebalances at once. Unsubscribing comes first: a consumer without
    // partitions that is about to join again is closed without a word to the broker, which then waits for it.
    consumer.unsubscribe();
    drop(consumer);
}

impl Heartbeat {
    fn tick(&self) {
        self.last_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    fn is_silent(&self) -> bool {
        let since = self.elapsed_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed));
        Duration::from_millis(since) > HANGS_AFTER
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
