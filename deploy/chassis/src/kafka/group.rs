//! A consumer group that distributes the partitions over the instances of a service and detects dead instances.
//!
//! The assignment is a hint about which instance should own a partition; fencing happens elsewhere. The group is joined
//! on an empty topic with as many partitions as the log has, so that no record is ever read through it.
//!
//! Invariant: the group is polled only while the runtime's tasks make progress: an instance that hangs loses its
//! membership, although the Kafka client's own thread would keep sending heartbeats.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    joined: AtomicBool,
}

impl ClientContext for Listener {}

impl ConsumerContext for Listener {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if matches!(rebalance, Rebalance::Assign(_)) {
            self.joined.store(true, Ordering::Relaxed);
        }
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
        assignment: watch::Sender<Assignment>,
    ) -> Result<Self, GroupError> {
        let context = Listener { joined: AtomicBool::new(false) };
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
        Ok(Self { stopped, ticking: ticking.abort_handle(), thread: Some(thread) })
    }

    /// Leaves the group and waits until it is done. Blocks: call it from a plain thread.
    pub fn leave(mut self) {
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
    while !stopped.load(Ordering::Relaxed) {
        if heartbeat.is_silent() {
            std::thread::sleep(POLL);
            continue;
        }
        if let Some(Err(error)) = consumer.poll(POLL) {
            tracing::debug!(error = %error, "polling the group failed; remaining a member");
        }
        if !consumer.context().joined.load(Ordering::Relaxed) {
            continue;
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
