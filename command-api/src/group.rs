//! The consumer group that spreads the partitions over the instances and notices the dead.
//!
//! It is a hint: what it says moves wishes, never ownership. It is joined on an empty topic of as many partitions
//! as the log has, so that no record is ever read through it.
//!
//! Invariant: it is polled only while the runtime's tasks make progress: an instance that hangs loses its
//! membership, though Kafka's client would go on to sound alive.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chassis::kafka::KafkaSettings;
use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use tokio::sync::watch;

const POLL: Duration = Duration::from_millis(100);
/// Between the ticks by which the runtime shows that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(200);
/// Without a tick for so long the runtime is taken to hang.
const HANGS_AFTER: Duration = Duration::from_secs(2);

/// The partitions that this instance should own; `None` until the group has said so for the first time.
pub(crate) type Assignment = Option<Arc<BTreeSet<u32>>>;

/// The empty topic on which the group is joined.
pub(crate) fn topic(log: &str) -> String {
    format!("{log}.owners")
}

pub(crate) struct Group {
    stopped: Arc<AtomicBool>,
    heartbeat: Arc<Heartbeat>,
    /// `None` once it was left.
    thread: Option<JoinHandle<()>>,
}

/// Ticked by a task of the runtime, looked at by the group's thread.
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
    pub(crate) fn join(
        kafka: &KafkaSettings,
        log: &str,
        assignment: watch::Sender<Assignment>,
    ) -> anyhow::Result<Self> {
        let topic = topic(log);
        let context = Listener { joined: AtomicBool::new(false) };
        let consumer: BaseConsumer<Listener> =
            kafka.member("command-api", &topic).create_with_context(context).context("create a group's member")?;
        consumer.subscribe(&[&topic]).context("join the group of owners")?;
        let stopped = Arc::new(AtomicBool::new(false));
        let heartbeat = Arc::new(Heartbeat { began: Instant::now(), last_ms: AtomicU64::new(0) });
        let thread = std::thread::Builder::new().name("group".into()).spawn({
            let (stopped, heartbeat) = (stopped.clone(), heartbeat.clone());
            move || poll(consumer, &stopped, &heartbeat, &assignment)
        })?;
        Ok(Self { stopped, heartbeat, thread: Some(thread) })
    }

    /// To be called every [`HEARTBEAT`].
    pub(crate) fn tick(&self) {
        self.heartbeat.tick();
    }

    /// Returns when the group knows that this instance is gone. Blocks: call it from a plain thread.
    pub(crate) fn leave(mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the group's thread had panicked");
        }
    }
}

/// Its thread ends soon, and leaves the group then.
impl Drop for Group {
    fn drop(&mut self) {
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
            tracing::debug!(error = %error, "the group does not answer; staying in it");
        }
        if !consumer.context().joined.load(Ordering::Relaxed) {
            continue;
        }
        let Ok(assigned) = consumer.assignment() else { continue };
        let now: BTreeSet<u32> = assigned.elements().iter().map(|place| place.partition().cast_unsigned()).collect();
        assignment.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&now);
            if changed {
                tracing::info!(partitions = ?now, "the group assigned partitions");
                *known = Some(Arc::new(now));
            }
            changed
        });
    }
    // Tells the group, which assigns anew at once.
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
