//! What an event causes: steps, each of which leads to the next by its outcome, until the saga ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use domain::reactions::{Deadline, Step, react};
use domain::{Event, TimeMs};
use schemas::events::WireEvent;
use schemas::record::Commit;
use tokio::sync::mpsc;

/// The record that a saga comes of, or whatever else its sender knows it by: partition and offset.
pub(crate) type RecordPosition = (u32, i64);

/// A step that is to be taken, and where it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Saga {
    pub(crate) step: Step,
    /// When the event happened: the time that the keys of its steps tell.
    pub(crate) at: TimeMs,
    /// The event: `{partition}-{offset}-{version}`.
    pub(crate) cause: Arc<str>,
    pub(crate) sender: Origin,
}

/// Who began a saga, and on which terms.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) source: RecordPosition,
    pub(crate) ended: mpsc::UnboundedSender<EndedSaga>,
    /// `None`: the saga may begin at any time.
    pub(crate) lease: Option<Arc<Lease>>,
    /// How long a step may be refused, or wait for a partition that is away; `None`: for as long as it takes.
    pub(crate) patience: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EndedSaga {
    pub(crate) source: RecordPosition,
    /// Of the saga.
    pub(crate) at: TimeMs,
    pub(crate) how: SagaEnd,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SagaEnd {
    Done,
    /// Its time has not come by the clock of command-api.
    NotDue,
    /// It had not begun when its lease ended, and never will.
    Dropped,
    /// It cannot be done, for this reason, however often it is tried.
    Failed(String),
    /// It was refused, or not asked for, for longer than its sender's patience.
    Late(String),
}

impl Saga {
    /// Nobody may wait for it any more.
    pub(super) fn end(&self, how: SagaEnd) {
        let _ = self.sender.ended.send(EndedSaga { source: self.sender.source, at: self.at, how });
    }
}

/// For how long whoever holds it may begin what events cause. It is renewed by what proves that nobody else has taken
/// over, so that a process that slept begins nothing that another one did meanwhile.
#[derive(Debug)]
pub(crate) struct Lease {
    made: Instant,
    /// In milliseconds from there.
    until_ms: AtomicU64,
}

impl Lease {
    /// Less than the group takes to give another one what this process had.
    const LENGTH: Duration = Duration::from_secs(3);

    /// `proven`: when it was certain that nobody else had taken over.
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

    /// Tells whether its holder has ended it: it is not renewed any more.
    pub(super) fn has_ended(&self) -> bool {
        self.until_ms.load(Ordering::Relaxed) == 0
    }

    pub(super) fn holds(&self) -> bool {
        self.made.elapsed() < Duration::from_millis(self.until_ms.load(Ordering::Relaxed))
    }
}

/// A deadline of an aggregate, by its name: when, or not any more; and the event that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadlineChange {
    pub(crate) deadline: Deadline,
    pub(crate) aggregate: String,
    pub(crate) due: Option<TimeMs>,
    pub(crate) cause: Arc<str>,
}

/// What the events of a commit cause: steps, each with its event, and deadlines.
#[derive(Debug, Default)]
pub(crate) struct Caused {
    pub(crate) steps: Vec<(Step, Arc<str>)>,
    pub(crate) deadlines: Vec<DeadlineChange>,
}

/// Tells if a product's event does, without reading it whole.
fn sets_deadline(event: &WireEvent<'_>) -> bool {
    match event {
        WireEvent::ProductReservedV2(reserved) => reserved.alarm_at.is_some(),
        WireEvent::ProductHoldsLapsedV1(_) => true,
        _ => false,
    }
}

pub(crate) fn caused_by(commit: &Commit<'_>, (partition, offset): RecordPosition, payment_window: Duration) -> Caused {
    let mut caused = Caused::default();
    let first = commit.version + 1 - commit.events.len() as u64;
    let (kind, id) = commit.aggregate.split_once('/').unwrap_or_default();
    // Little follows from what products do, and that is most of what happens.
    if kind == "product" && !commit.events.iter().any(sets_deadline) {
        return caused;
    }
    let window_ms = u64::try_from(payment_window.as_millis()).unwrap_or(u64::MAX);
    for (event, version) in commit.events.iter().zip(first..) {
        let event: Event = event.upcast();
        let reaction = react(id, &event, TimeMs(commit.at_ms), commit.cause.is_some(), window_ms);
        let cause: Arc<str> = format!("{partition}-{offset}-{version}").into();
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
