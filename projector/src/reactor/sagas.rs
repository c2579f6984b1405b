//! Sagas: the steps that an event causes, each leading to the next by its outcome, until the saga ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use domain::reactions::{Deadline, Step, react};
use domain::{Event, TimeMs};
use schemas::events::WireEvent;
use schemas::record::Commit;
use tokio::sync::mpsc;

/// Partition and offset of a saga's record, or another identifier chosen by its sender.
pub(crate) type RecordPosition = (u32, i64);

/// A saga at its next step, with its origin.
#[derive(Debug, Clone)]
pub(crate) struct Saga {
    pub(crate) step: Step,
    /// Time of the event, which is part of the steps' idempotency keys.
    pub(crate) at: TimeMs,
    /// Event that caused the saga; see [`Commit::event_name`].
    pub(crate) cause: Arc<str>,
    pub(crate) sender: Origin,
}

/// Sender of a saga, and the terms on which it runs.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) source: RecordPosition,
    pub(crate) ended: mpsc::UnboundedSender<EndedSaga>,
    /// Lease under which the saga may begin; `None`: it may begin at any time.
    pub(crate) lease: Option<Arc<Lease>>,
    /// Maximum time for which a step may be refused, or wait for an unavailable partition; `None`: no limit.
    pub(crate) patience: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EndedSaga {
    pub(crate) source: RecordPosition,
    /// Time of the saga's event.
    pub(crate) at: TimeMs,
    pub(crate) how: SagaEnd,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SagaEnd {
    Done,
    /// The deadline is not due yet by command-api's clock.
    NotDue,
    /// The saga had not begun when its lease ended, and never will.
    Dropped,
    /// The saga cannot succeed, for this reason, however often it is tried.
    Failed(String),
    /// A step was refused, or not sent, for longer than the sender's patience.
    Late(String),
}

impl Saga {
    /// Reports the end to the sender, which may be gone.
    pub(super) fn end(&self, how: SagaEnd) {
        let _ = self.sender.ended.send(EndedSaga { source: self.sender.source, at: self.at, how });
    }
}

/// Permission to begin sagas for a limited time. Each proof that no other reactor has taken over renews it, so that a
/// process that was suspended begins nothing that its successor began meanwhile.
#[derive(Debug)]
pub(crate) struct Lease {
    made: Instant,
    /// End of the lease, in milliseconds after `made`.
    until_ms: AtomicU64,
}

impl Lease {
    /// Duration of a lease: less than the group takes to reassign this process's partitions.
    pub(super) const LENGTH: Duration = Duration::from_secs(3);

    /// Returns a lease that counts from `proven`, a time at which no other reactor had taken over.
    pub(crate) fn new(proven: Instant) -> Self {
        let lease = Self { made: Instant::now(), until_ms: AtomicU64::new(0) };
        lease.renew(proven);
        lease
    }

    pub(crate) fn renew(&self, proven: Instant) {
        let until = (proven + Self::LENGTH).saturating_duration_since(self.made);
        self.until_ms.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.until_ms.store(0, Ordering::Relaxed);
    }

    /// Returns whether its holder ended the lease, after which it is not renewed.
    pub(super) fn has_ended(&self) -> bool {
        self.until_ms.load(Ordering::Relaxed) == 0
    }

    pub(super) fn holds(&self) -> bool {
        self.made.elapsed() < Duration::from_millis(self.until_ms.load(Ordering::Relaxed))
    }
}

/// A new time for an aggregate's deadline, or `None` to cancel it, with the event that causes the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadlineChange {
    pub(crate) deadline: Deadline,
    pub(crate) aggregate: String,
    pub(crate) due: Option<TimeMs>,
    pub(crate) cause: Arc<str>,
}

/// Steps and deadlines that the events of a commit cause; each step has its event.
#[derive(Debug, Default)]
pub(crate) struct Caused {
    pub(crate) steps: Vec<(Step, Arc<str>)>,
    pub(crate) deadlines: Vec<DeadlineChange>,
}

/// Returns whether a product's event changes a deadline, without decoding it in full.
fn sets_deadline(event: &WireEvent<'_>) -> bool {
    match event {
        WireEvent::ProductReservedV2(reserved) => reserved.alarm_at.is_some(),
        WireEvent::ProductHoldsLapsedV1(_) => true,
        _ => false,
    }
}

pub(crate) fn caused_by(commit: &Commit<'_>, at: RecordPosition, payment_window: Duration) -> Caused {
    let mut caused = Caused::default();
    let first = commit.version + 1 - commit.events.len() as u64;
    let (kind, id) = commit.aggregate.split_once('/').unwrap_or_default();
    // Most events are of products, and few of those cause anything: skip the rest before upcasting.
    if kind == "product" && !commit.events.iter().any(sets_deadline) {
        return caused;
    }
    let window_ms = u64::try_from(payment_window.as_millis()).unwrap_or(u64::MAX);
    for (event, version) in commit.events.iter().zip(first..) {
        let event: Event = event.upcast();
        let reaction = react(id, &event, TimeMs(commit.at_ms), commit.cause.is_some(), window_ms);
        let cause: Arc<str> = commit.event_name(at, version).into();
        caused.steps.extend(reaction.steps.into_iter().map(|step| (step, cause.clone())));
        caused.deadlines.extend(reaction.deadlines.into_iter().map(|(deadline, due)| DeadlineChange {
            deadline,
            aggregate: commit.aggregate.to_string(),
            due,
            cause: cause.clone(),
        }));
    }
    caused
}
