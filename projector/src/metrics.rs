//! The metrics of this service. Names and units are part of its interface.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chassis::clock::now_ms;
use chassis::telemetry::{Telemetry, process};
use domain::TimeMs;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};
use schemas::chain::Passed;
use schemas::feeds::StoredView;

use crate::postgres::measure::Measurements;

#[derive(Debug)]
pub(crate) struct Metrics {
    /// `stampede_records_read_total`.
    records: Counter<u64>,
    /// `stampede_commits_folded_total`: commits that counted and are in the views.
    commits: Counter<u64>,
    /// `stampede_records_passed_over_total{reason}`.
    passed_over: Counter<u64>,
    /// `stampede_projection_seconds`: time from a batch's arrival to its commit in Postgres.
    transaction: Histogram<f64>,
    /// `stampede_cache_seconds`: time that Redis takes to apply rows and positions.
    cache: Histogram<f64>,
    /// `stampede_cache_failures_total`: failed updates of Redis.
    cache_failures: Counter<u64>,
    /// `stampede_incarnations_total`: times that a view's rows of a partition in Redis were declared stale.
    incarnations: Counter<u64>,
    /// `stampede_snapshots_total{outcome}`: snapshots that were due: `kept`, `not-worth-it` or `failed`.
    snapshots: Counter<u64>,
    /// `stampede_segments_closed_total`.
    segments: Counter<u64>,
    /// `stampede_parked{view}`: aggregates with parked records.
    parked: Gauge<u64>,
    /// `stampede_parked_age_seconds{view}`: age of the oldest parked reaction or deadline.
    parked_age: Gauge<f64>,
    /// `stampede_view_waits_for_rebuild{view}`: 1 if another version of the fold than this build's made the view's
    /// rows.
    waits_for_rebuild: Gauge<u64>,
    /// `stampede_reactor_waits_to_be_told`: 1 if no reactor has a checkpoint and the log is not new.
    waits_to_be_told: Gauge<u64>,
    /// `stampede_reaction_steps_total{outcome}`: commands that events caused, by outcome; those with outcome `later`
    /// are retried.
    steps: Counter<u64>,
    /// `stampede_reaction_seconds`: time from an event to the end of its saga.
    reaction: Histogram<f64>,
    /// `stampede_deadlines_fired_total`.
    deadlines: Counter<u64>,
    /// `stampede_topic_differs`: 1 if the log's topic is not configured as required.
    topic_differs: Gauge<u64>,
    /// `stampede_partition_halted{reader,partition}`: 1 if the partition's log cannot be read any further by the
    /// projector (`views`) or the reactor (`reactor`).
    halted: Gauge<u64>,
    /// `stampede_projector_active`: 1 if this instance folds.
    active: Gauge<u64>,
    /// Time of the oldest event with open sagas, in ms since 1970; 0 without one.
    oldest_open_ms: Arc<AtomicU64>,
    /// Time of the last incarnation, in ms since 1970; 0 before the first.
    incarnation_ms: Arc<AtomicU64>,
    pub(crate) postgres: Measurements,
}

impl Metrics {
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        process::observe(telemetry);
        let counter = |name, labels, description| telemetry.counter(name, labels, description);
        let gauge = |name, labels, description| telemetry.gauge(name, labels, description);
        Self {
            records: counter("stampede_records_read", &[], "Records read from the log."),
            commits: counter("stampede_commits_folded", &[], "Commits that counted and are in the views."),
            passed_over: counter("stampede_records_passed_over", &["reason"], "Records of the log that do not count."),
            transaction: telemetry
                .latency_histogram("stampede_projection", "Time from a batch's arrival to its commit in Postgres."),
            cache: telemetry.latency_histogram("stampede_cache", "Time that Redis takes to apply rows and positions."),
            cache_failures: counter("stampede_cache_failures", &[], "Failed updates of Redis."),
            incarnations: counter(
                "stampede_incarnations",
                &[],
                "Times that a view's rows of a partition in Redis were declared stale.",
            ),
            snapshots: counter("stampede_snapshots", &["outcome"], "Snapshots that were due."),
            segments: counter("stampede_segments_closed", &[], "Segments of the journal that were closed."),
            parked: gauge("stampede_parked", &["view"], "Aggregates with parked records."),
            parked_age: telemetry.seconds_gauge(
                "stampede_parked_age",
                &["view"],
                "Age of the oldest parked reaction or deadline.",
            ),
            waits_for_rebuild: gauge(
                "stampede_view_waits_for_rebuild",
                &["view"],
                "1 if a view waits for a rebuild because another version of the fold made its rows.",
            ),
            waits_to_be_told: gauge(
                "stampede_reactor_waits_to_be_told",
                &[],
                "1 if an operator must set the reactor's starting position in an old log.",
            ),
            steps: counter("stampede_reaction_steps", &["outcome"], "Commands that events caused, by outcome."),
            reaction: telemetry.latency_histogram("stampede_reaction", "Time from an event to the end of its saga."),
            deadlines: counter("stampede_deadlines_fired", &[], "Deadlines that fired and took effect."),
            topic_differs: gauge(
                "stampede_topic_differs",
                &[],
                "1 if the log's topic is not configured as required, so that records may be lost.",
            ),
            halted: gauge(
                "stampede_partition_halted",
                &["reader", "partition"],
                "1 if a partition's log cannot be read any further.",
            ),
            active: gauge("stampede_projector_active", &[], "1 if this instance folds, 0 if it is on standby."),
            oldest_open_ms: observed_age(
                telemetry,
                "stampede_reaction_open",
                "Age of the oldest event whose reactions are under way; 0 without one.",
                Some(0.0),
            ),
            incarnation_ms: observed_age(
                telemetry,
                "stampede_incarnation_age",
                "Time since this instance last declared rows in Redis stale.",
                None,
            ),
            postgres: Measurements::observed(telemetry),
        }
    }

    pub(crate) fn folded(&self, records: usize, commits: usize) {
        self.records.add(records as u64, &[]);
        self.commits.add(commits as u64, &[]);
    }

    pub(crate) fn passed_over(&self, reason: Passed) {
        let reason = match reason {
            Passed::Foreign => "foreign",
            Passed::OtherEpoch => "other-epoch",
            Passed::OutOfSequence => "out-of-sequence",
        };
        self.passed_over.add(1, &[KeyValue::new("reason", reason)]);
    }

    pub(crate) fn committed(&self, after: Duration) {
        self.transaction.record(after.as_secs_f64(), &[]);
    }

    pub(crate) fn cached(&self, after: Duration) {
        self.cache.record(after.as_secs_f64(), &[]);
    }

    pub(crate) fn cache_failed(&self) {
        self.cache_failures.add(1, &[]);
    }

    pub(crate) fn incarnations_begun(&self, places: usize) {
        self.incarnations.add(places as u64, &[]);
        self.incarnation_ms.store(now_ms(), Ordering::Relaxed);
    }

    pub(crate) fn kept(&self, kept: bool) {
        self.snapshots.add(1, &[KeyValue::new("outcome", if kept { "kept" } else { "not-worth-it" })]);
    }

    pub(crate) fn snapshot_failed(&self) {
        self.snapshots.add(1, &[KeyValue::new("outcome", "failed")]);
    }

    pub(crate) fn segments_closed(&self, count: u64) {
        self.segments.add(count, &[]);
    }

    /// Records the number of a view's parked aggregates, or of the aggregates with parked reactions or deadlines.
    pub(crate) fn parked(&self, view: &'static str, aggregates: u64) {
        self.parked.record(aggregates, &[KeyValue::new("view", view)]);
    }

    /// Records the age of the oldest parked reaction or deadline.
    pub(crate) fn parked_age(&self, view: &'static str, oldest: Duration) {
        self.parked_age.record(oldest.as_secs_f64(), &[KeyValue::new("view", view)]);
    }

    pub(crate) fn waits_for_rebuild(&self, view: StoredView, waits: bool) {
        self.waits_for_rebuild.record(waits.into(), &[KeyValue::new("view", view.name())]);
    }

    pub(crate) fn step_answered(&self, outcome: &'static str) {
        self.steps.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    pub(crate) fn waits_to_be_told(&self, waits: bool) {
        self.waits_to_be_told.record(waits.into(), &[]);
    }

    pub(crate) fn reacted(&self, after: Duration) {
        self.reaction.record(after.as_secs_f64(), &[]);
    }

    /// Records the time of the oldest event with open sagas.
    pub(crate) fn oldest_open(&self, at: Option<TimeMs>) {
        self.oldest_open_ms.store(at.map_or(0, |at| at.0), Ordering::Relaxed);
    }

    pub(crate) fn fired(&self, deadlines: usize) {
        self.deadlines.add(deadlines as u64, &[]);
    }

    pub(crate) fn topic_differs(&self, differs: bool) {
        self.topic_differs.record(differs.into(), &[]);
    }

    pub(crate) fn halted(&self, reader: &'static str, partition: u32, halted: bool) {
        let labels = [KeyValue::new("reader", reader), KeyValue::new("partition", i64::from(partition))];
        self.halted.record(halted.into(), &labels);
    }

    pub(crate) fn active(&self, active: bool) {
        self.active.record(active.into(), &[]);
    }
}

/// Creates a gauge of the time since a moment, in ms since 1970. It shows `without` while that is 0.
fn observed_age(
    telemetry: &Telemetry,
    name: &'static str,
    description: &'static str,
    without: Option<f64>,
) -> Arc<AtomicU64> {
    let moment = Arc::new(AtomicU64::new(0));
    let observed = moment.clone();
    telemetry.observed_seconds_gauge(name, &[], description, move |gauge| {
        let age = match observed.load(Ordering::Relaxed) {
            0 => without,
            at_ms => Some(now_ms().saturating_sub(at_ms) as f64 / 1000.0),
        };
        if let Some(age) = age {
            gauge.observe(age, &[]);
        }
    });
    moment
}

#[cfg(test)]
mod tests {
    use chassis::listeners::{ListenerSettings, Listeners};

    use super::*;

    #[test]
    fn an_open_reaction_ages_until_it_ends() {
        let telemetry = Telemetry::new("projector").unwrap();
        let metrics = Metrics::new(&telemetry);
        let shown = || {
            let text = telemetry.render().unwrap();
            let value = text.lines().find_map(|line| line.strip_prefix("stampede_reaction_open_seconds "));
            value.unwrap().parse::<f64>().unwrap()
        };
        assert_eq!(shown(), 0.0);
        metrics.oldest_open(Some(TimeMs(now_ms() - 7_000)));
        assert!((7.0..60.0).contains(&shown()));
        metrics.oldest_open(None);
        assert_eq!(shown(), 0.0);
    }

    #[test]
    fn the_reference_lists_every_metric() {
        let telemetry = Telemetry::new("projector").unwrap();
        Metrics::new(&telemetry);
        Listeners::new(&ListenerSettings::default(), &telemetry).unwrap();
        chassis::reference::check_metrics("projector", &telemetry);
    }
}
