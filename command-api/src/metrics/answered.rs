//! Counts answers by aggregate, command and outcome.
//!
//! Every command is counted, so counting is a single addition to a preallocated number: an instrument with labels would
//! look them up each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chassis::telemetry::Telemetry;
use opentelemetry::KeyValue;
use schemas::aggregate::{AggregateType, TYPES, type_name};
use schemas::answers::Answer;
use schemas::commands::contracts;

const OUTCOMES: [&str; 13] = [
    "accepted",
    "repeated",
    "rejected",
    "precondition-failed",
    "key-reused",
    "key-expired",
    "invalid",
    "no-such-command",
    "overloaded",
    "quarantined",
    "no-owner",
    "unknown",
    "misdirected",
];

pub(super) struct Answered {
    commands: Vec<CommandAnswers>,
}

struct CommandAnswers {
    aggregate: AggregateType,
    /// Empty for names that are no command of the aggregate.
    command: &'static str,
    by_outcome: [AtomicU64; OUTCOMES.len()],
}

impl Answered {
    pub(super) fn observed(telemetry: &Telemetry) -> Arc<Self> {
        let of =
            |aggregate: AggregateType| {
                contracts(aggregate).iter().map(|contract| contract.name).chain([""]).map(move |command| {
                    CommandAnswers { aggregate, command, by_outcome: [const { AtomicU64::new(0) }; OUTCOMES.len()] }
                })
            };
        let answered = Arc::new(Self { commands: TYPES.into_iter().flat_map(of).collect() });
        let observed = answered.clone();
        telemetry.observed_counter(
            "stampede_commands",
            &["aggregate", "command", "outcome"],
            "Commands answered, by aggregate, command and outcome.",
            move |counter| {
                for command in &observed.commands {
                    command.observe(|value, labels| counter.observe(value, labels));
                }
            },
        );
        answered
    }

    pub(super) fn count(&self, aggregate: AggregateType, command: &str, answer: &Answer) {
        let of = |known: &&CommandAnswers| known.aggregate == aggregate && [command, ""].contains(&known.command);
        if let Some(known) = self.commands.iter().find(of) {
            known.by_outcome[outcome(answer)].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl CommandAnswers {
    /// Reports the outcomes that have occurred.
    fn observe(&self, observe: impl Fn(u64, &[KeyValue])) {
        for (name, count) in OUTCOMES.iter().zip(&self.by_outcome) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                let aggregate = KeyValue::new("aggregate", type_name(self.aggregate));
                let command = KeyValue::new("command", self.command);
                observe(count, &[aggregate, command, KeyValue::new("outcome", *name)]);
            }
        }
    }
}

/// Returns the answer's index in [`OUTCOMES`].
fn outcome(answer: &Answer) -> usize {
    match answer {
        Answer::Accepted { replayed: false, .. } => 0,
        Answer::Accepted { replayed: true, .. } => 1,
        Answer::Rejected { .. } => 2,
        Answer::PreconditionFailed { .. } => 3,
        Answer::KeyReused => 4,
        Answer::KeyExpired { .. } => 5,
        Answer::Invalid { .. } => 6,
        Answer::NoSuchCommand => 7,
        Answer::Overloaded { .. } => 8,
        Answer::Quarantined => 9,
        Answer::NoOwner => 10,
        Answer::OutcomeUnknown => 11,
        Answer::Misdirected => 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_aggregate_command_and_outcome() {
        let telemetry = Telemetry::new("test").unwrap();
        let answered = Answered::observed(&telemetry);
        answered.count(AggregateType::Product, "reserve", &Answer::NoOwner);
        answered.count(AggregateType::Product, "reserve", &Answer::NoOwner);
        answered.count(AggregateType::Order, "fly", &Answer::NoSuchCommand);
        let text = telemetry.render().unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            text.contains("stampede_commands_total{aggregate=\"product\",command=\"reserve\",outcome=\"no-owner\"} 2"),
            "{text}"
        );
        assert!(text.contains("{aggregate=\"order\",command=\"\",outcome=\"no-such-command\"} 1"), "{text}");
    }
}
