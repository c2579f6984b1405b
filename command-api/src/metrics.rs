//! What this service counts. Names and units are part of its interface.

use std::time::Duration;

use chassis::telemetry::Telemetry;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};
use schemas::answers::Answer;
use schemas::chain::Passed;

use crate::partition::DoubtCause;

#[derive(Debug)]
pub(crate) struct Metrics {
    /// `stampede_commands_total{outcome}`: answers.
    commands: Counter<u64>,
    /// `stampede_command_seconds`: from receipt to answer.
    duration: Histogram<f64>,
    /// `stampede_partition_owned{partition}`: 1 where this instance owns the partition.
    owned: Gauge<u64>,
    /// `stampede_claims_total{partition}`: claims that made this instance the owner.
    claims: Counter<u64>,
    /// `stampede_suspicions_total{partition}`: owners that did not answer.
    suspicions: Counter<u64>,
    /// `stampede_doubts_total{partition,cause}`.
    doubts: Counter<u64>,
    /// `stampede_records_passed_over_total{partition,reason}`: records of the log that do not count.
    passed_over: Counter<u64>,
    /// `stampede_commands_forwarded_total`: commands that another instance owned.
    forwarded: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        let meter = telemetry.meter();
        Self {
            commands: meter.u64_counter("stampede_commands").with_description("Commands answered, by outcome.").build(),
            duration: telemetry.latency_histogram("stampede_command", "From the receipt of a command to its answer."),
            owned: meter
                .u64_gauge("stampede_partition_owned")
                .with_description("1 where this instance owns the partition.")
                .build(),
            claims: meter
                .u64_counter("stampede_claims")
                .with_description("Claims that made this instance the owner.")
                .build(),
            suspicions: meter
                .u64_counter("stampede_suspicions")
                .with_description("Times that an owner did not answer.")
                .build(),
            doubts: meter
                .u64_counter("stampede_doubts")
                .with_description("Times that a delivery report left open what counts.")
                .build(),
            passed_over: meter
                .u64_counter("stampede_records_passed_over")
                .with_description("Records of the log that do not count.")
                .build(),
            forwarded: meter
                .u64_counter("stampede_commands_forwarded")
                .with_description("Commands that another instance owned.")
                .build(),
        }
    }

    pub(crate) fn answered(&self, answer: &Answer, after: Duration) {
        self.commands.add(1, &[KeyValue::new("outcome", outcome(answer))]);
        self.duration.record(after.as_secs_f64(), &[]);
    }

    pub(crate) fn forwarded(&self) {
        self.forwarded.add(1, &[]);
    }

    pub(crate) fn owned(&self, partition: u32, owned: bool) {
        self.owned.record(owned.into(), &[label(partition)]);
    }

    pub(crate) fn claimed(&self, partition: u32) {
        self.claims.add(1, &[label(partition)]);
    }

    pub(crate) fn suspected(&self, partition: u32) {
        self.suspicions.add(1, &[label(partition)]);
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

fn outcome(answer: &Answer) -> &'static str {
    match answer {
        Answer::Accepted { replayed: true, .. } => "repeated",
        Answer::Accepted { .. } => "accepted",
        Answer::Rejected { .. } => "rejected",
        Answer::PreconditionFailed { .. } => "precondition-failed",
        Answer::KeyReused => "key-reused",
        Answer::KeyExpired { .. } => "key-expired",
        Answer::Invalid { .. } => "invalid",
        Answer::NoSuchCommand => "no-such-command",
        Answer::Overloaded { .. } => "overloaded",
        Answer::NoOwner | Answer::Misdirected => "no-owner",
        Answer::OutcomeUnknown => "unknown",
    }
}
