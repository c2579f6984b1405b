//! Metrics of this service. Names and units are part of its interface.

mod answered;
mod refused;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chassis::telemetry::{Telemetry, process};
use domain::MAX_STATE_BYTES;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Counter, Gauge, Histogram};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::chain::Passed;

use crate::mailbox::{CAPACITY, Gauges, Mailbox};
use crate::partition::DoubtCause;
use answered::Answered;
use refused::Refused;
pub(crate) use refused::STAFF;

pub(crate) struct Metrics {
    telemetry: Telemetry,
    /// `stampede_commands_total{aggregate,command,outcome}`: answered commands.
    answered: Arc<Answered>,
    /// `stampede_commands_refused_total{reason}`: commands and batches refused before they were read, also commands of
    /// staff for lack of the token.
    refused: Arc<Refused>,
    /// `stampede_command_seconds`: from receipt to answer.
    duration: Histogram<f64>,
    /// `stampede_command_mailbox_seconds`: wait for a turn; the longest of each turn.
    mailbox: Histogram<f64>,
    /// `stampede_command_decide_seconds`: deciding and handing to the producer; the mean of each turn.
    decide: Histogram<f64>,
    /// `stampede_command_append_seconds`: from the producer to the delivery report; one record of each partition at a
    /// time.
    append: Histogram<f64>,
    /// `stampede_command_fence_seconds`: the same for fences, which confirm answers that append nothing else.
    fence: Histogram<f64>,
    /// `stampede_partition_owned{partition}`: 1 if this instance owns the partition.
    owned: Gauge<u64>,
    /// `stampede_partition_halted{partition}`: 1 if the partition's log cannot be read any further.
    halted: Gauge<u64>,
    /// `stampede_claims_total{partition}`: claims that made this instance the owner.
    claims: Counter<u64>,
    /// `stampede_steps_down_total{partition,cause}`: releases on request (`asked`), releases because of a wrong clock
    /// (`clock`), and losses to another instance's claim (`deposed`).
    steps_down: Counter<u64>,
    /// `stampede_suspicions_total{partition}`: owners that did not answer.
    suspicions: Counter<u64>,
    /// `stampede_doubts_total{partition,cause}`: delivery reports that left open which records count.
    doubts: Counter<u64>,
    /// `stampede_records_passed_over_total{partition,reason}`: records of the log that do not count.
    passed_over: Counter<u64>,
    /// `stampede_commands_forwarded_total`: commands forwarded to another instance.
    forwarded: Counter<u64>,
    /// `stampede_peers_refused_total`: uses of an owner's address that `PEER_URLS` does not allow.
    peers_refused: Counter<u64>,
    /// `stampede_topic_differs`: 1 if the log's topic is not configured as required.
    topic_differs: Gauge<u64>,
    /// `stampede_quarantines_total{partition}`: aggregates whose rules panicked.
    quarantines: Counter<u64>,
    /// `stampede_clock_skew_seconds`: lead of this instance's clock over those of Kafka's brokers.
    clock_skew: Gauge<f64>,
}

type Shown = (&'static str, &'static str, fn(&Gauges) -> &AtomicU64);

/// The label of a metric of one partition.
const PARTITION: &[&str] = &["partition"];

/// Gauges of an engine: name, description, value.
const SHOWN: [Shown; 10] = [
    ("stampede_in_flight", "Commands whose answer waits for the log.", |gauges| &gauges.in_flight),
    ("stampede_resident_aggregates", "Aggregates in memory.", |gauges| &gauges.residents),
    ("stampede_resident_bytes", "Approximate memory that aggregates take.", |gauges| &gauges.resident_bytes),
    ("stampede_largest_state_bytes", "Approximate memory of the largest state since the log was read.", |gauges| {
        &gauges.largest_state
    }),
    ("stampede_remembered_keys", "Idempotency keys in memory.", |gauges| &gauges.keys),
    ("stampede_known_names", "Aggregates that are known to have events.", |gauges| &gauges.names),
    ("stampede_names_complete", "1 if all names are known, so that a new aggregate is recognized.", |gauges| {
        &gauges.knows_names
    }),
    ("stampede_tail_records", "Records after the journal's checkpoint.", |gauges| &gauges.tail_records),
    ("stampede_quarantined", "Aggregates in quarantine.", |gauges| &gauges.quarantined),
    (
        "stampede_partition_epoch",
        "Offset of the claim that counts, as far as this instance has read the log.",
        |gauges| &gauges.epoch,
    ),
];

/// Limits of gauges, with the gauge that each limits.
const MAILBOX_CAPACITY: (&str, &str) =
    ("stampede_mailbox_capacity", "Commands that may wait in one partition: limit of stampede_mailbox_depth.");
const RESIDENT_LIMIT: (&str, &str) = (
    "stampede_resident_limit_bytes",
    "Memory from which on unused aggregates are evicted: limit of the sum of stampede_resident_bytes.",
);
const STATE_LIMIT: (&str, &str) = (
    "stampede_state_limit_bytes",
    "Size at which a state takes no new entries: limit of stampede_largest_state_bytes.",
);

/// Kind of a record whose latency is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appended {
    Commit,
    Fence,
}

impl Metrics {
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        process::observe(telemetry);
        let counter = |name, labels, what| telemetry.counter(name, labels, what);
        let gauge = |name, labels, what| telemetry.gauge(name, labels, what);
        let seconds = |name, what| telemetry.latency_histogram(name, what);
        let topic_differs = "1 if the log's topic is not configured as required, so that records may be lost.";
        let halted = "1 if the partition's log cannot be read any further.";
        let refused_peers = "Uses of an owner's address that PEER_URLS does not allow.";
        Self {
            answered: Answered::observed(telemetry),
            refused: Refused::observed(telemetry),
            duration: seconds("stampede_command", "From the receipt of a command to its answer."),
            mailbox: seconds("stampede_command_mailbox", "Wait for a turn; the longest of each turn."),
            decide: seconds("stampede_command_decide", "Deciding and handing to the producer; the mean of each turn."),
            append: seconds("stampede_command_append", "From the producer to the log; sampled."),
            fence: seconds("stampede_command_fence", "From the producer to the log, for fences; sampled."),
            owned: gauge("stampede_partition_owned", PARTITION, "1 if this instance owns the partition."),
            halted: gauge("stampede_partition_halted", PARTITION, halted),
            claims: counter("stampede_claims", PARTITION, "Claims that made this instance the owner."),
            steps_down: counter(
                "stampede_steps_down",
                &["partition", "cause"],
                "Times that this instance ceased to own a partition.",
            ),
            suspicions: counter("stampede_suspicions", PARTITION, "Times that an owner did not answer."),
            doubts: counter(
                "stampede_doubts",
                &["partition", "cause"],
                "Delivery reports that left open which records count.",
            ),
            passed_over: counter(
                "stampede_records_passed_over",
                &["partition", "reason"],
                "Records of the log that do not count.",
            ),
            forwarded: counter("stampede_commands_forwarded", &[], "Commands forwarded to another instance."),
            peers_refused: counter("stampede_peers_refused", &[], refused_peers),
            topic_differs: gauge("stampede_topic_differs", &[], topic_differs),
            quarantines: counter("stampede_quarantines", PARTITION, "Aggregates whose rules panicked."),
            clock_skew: telemetry.seconds_gauge(
                "stampede_clock_skew",
                &[],
                "Lead of this instance's clock over those of Kafka's brokers.",
            ),
            telemetry: telemetry.clone(),
        }
    }

    /// Registers the gauges of `mailboxes`, which are indexed by partition: `stampede_mailbox_depth`, the number of
    /// commands that wait for a turn, and [`SHOWN`]; beside them their limits.
    pub(crate) fn observe(&self, mailboxes: &Arc<[Mailbox]>, state_max_bytes: usize) {
        for ((name, what), limit) in
            [(MAILBOX_CAPACITY, CAPACITY), (RESIDENT_LIMIT, state_max_bytes), (STATE_LIMIT, MAX_STATE_BYTES)]
        {
            self.telemetry.observed_gauge(name, &[], what, move |gauge| gauge.observe(limit as u64, &[]));
        }
        self.observe_one(mailboxes, "stampede_mailbox_depth", "Commands that wait for a turn.", |mailbox| {
            mailbox.depth() as u64
        });
        for (name, what, of) in SHOWN {
            self.observe_one(mailboxes, name, what, move |mailbox| of(&mailbox.gauges).load(Ordering::Relaxed));
        }
    }

    fn observe_one(
        &self,
        mailboxes: &Arc<[Mailbox]>,
        name: &'static str,
        what: &'static str,
        value: impl Fn(&Mailbox) -> u64 + Send + Sync + 'static,
    ) {
        let mailboxes = Arc::downgrade(mailboxes);
        let callback = move |gauge: &dyn AsyncInstrument<u64>| {
            let Some(mailboxes) = mailboxes.upgrade() else { return };
            for (partition, mailbox) in (0..).zip(&*mailboxes) {
                gauge.observe(value(mailbox), &[label(partition)]);
            }
        };
        self.telemetry.observed_gauge(name, PARTITION, what, callback);
    }

    pub(crate) fn answered(&self, aggregate: &AggregateId, command: &str, answer: &Answer, after: Duration) {
        self.answered.count(aggregate.aggregate(), command, answer);
        self.duration.record(after.as_secs_f64(), &[]);
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.count(reason);
    }

    pub(crate) fn decided(&self, longest_wait: Duration, mean: Duration) {
        self.mailbox.record(longest_wait.as_secs_f64(), &[]);
        self.decide.record(mean.as_secs_f64(), &[]);
    }

    pub(crate) fn appended(&self, what: Appended, after: Duration) {
        let histogram = match what {
            Appended::Commit => &self.append,
            Appended::Fence => &self.fence,
        };
        histogram.record(after.as_secs_f64(), &[]);
    }

    pub(crate) fn forwarded(&self) {
        self.forwarded.add(1, &[]);
    }

    pub(crate) fn refused_peer(&self) {
        self.peers_refused.add(1, &[]);
    }

    pub(crate) fn topic_differs(&self, differs: bool) {
        self.topic_differs.record(differs.into(), &[]);
    }

    pub(crate) fn owned(&self, partition: u32, owned: bool) {
        self.owned.record(owned.into(), &[label(partition)]);
    }

    pub(crate) fn halted(&self, partition: u32, halted: bool) {
        self.halted.record(halted.into(), &[label(partition)]);
    }

    pub(crate) fn claimed(&self, partition: u32) {
        self.claims.add(1, &[label(partition)]);
    }

    pub(crate) fn stepped_down(&self, partition: u32, cause: &'static str) {
        self.steps_down.add(1, &[label(partition), KeyValue::new("cause", cause)]);
    }

    pub(crate) fn clock_skew(&self, skew_ms: i64) {
        self.clock_skew.record(skew_ms as f64 / 1000.0, &[]);
    }

    pub(crate) fn suspected(&self, partition: u32) {
        self.suspicions.add(1, &[label(partition)]);
    }

    pub(crate) fn quarantined(&self, partition: u32) {
        self.quarantines.add(1, &[label(partition)]);
    }

    pub(crate) fn doubted(&self, partition: u32, cause: DoubtCause) {
        let cause = match cause {
            DoubtCause::Displaced => "displaced",
            DoubtCause::NoOffset => "no-offset",
            DoubtCause::Broken => "broken",
        };
        self.doubts.add(1, &[label(partition), KeyValue::new("cause", cause)]);
    }

    pub(crate) fn passed_over(&self, partition: u32, reason: Passed) {
        let reason = match reason {
            Passed::Foreign => "foreign",
            Passed::OtherEpoch => "other-epoch",
            Passed::OutOfSequence => "out-of-sequence",
        };
        self.passed_over.add(1, &[label(partition), KeyValue::new("reason", reason)]);
    }
}

fn label(partition: u32) -> KeyValue {
    KeyValue::new("partition", i64::from(partition))
}

#[cfg(test)]
mod tests {
    use chassis::listeners::{ListenerSettings, Listeners};

    use super::*;

    #[test]
    fn the_reference_lists_every_metric() {
        let telemetry = Telemetry::new("command-api").unwrap();
        Metrics::new(&telemetry).observe(&Arc::from([]), 0);
        crate::archive::Following::new(&telemetry, chassis::readiness::Readiness::new().condition("archive"));
        Listeners::new(&ListenerSettings::default(), &telemetry).unwrap();
        chassis::reference::check_metrics("command-api", &telemetry);
    }
}
