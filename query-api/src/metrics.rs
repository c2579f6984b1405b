//! Metrics of this service. Their names and units are part of its interface.

use std::sync::Arc;
use std::time::Duration;

use chassis::telemetry::{Telemetry, process};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};
use schemas::feeds::FeedId;

use crate::positions::{MAX_WAITERS, NotReached, Place, Positions};

pub(crate) struct Metrics {
    /// `stampede_queries_total{route,status}`: queries answered.
    queries: Counter<u64>,
    /// `stampede_query_seconds`: time from the end of a request's head to its answer.
    duration: Histogram<f64>,
    /// `stampede_reads_total{view,origin}`: rows and lists read, by [`Origin`].
    reads: Counter<u64>,
    /// `stampede_token_waits_total{outcome}`: requests with a consistency token.
    token_waits: Counter<u64>,
    /// `stampede_reads_refused_total{server}`: queries refused because the server's queue was full or too slow.
    refused: Counter<u64>,
    /// `stampede_replica_usable{replica}`: 1 if the last probe of a replica of Postgres found the log there.
    replica_usable: Gauge<u64>,
    /// `stampede_replica_behind_seconds{replica}`: age of the oldest record that a usable replica does not show.
    replica_behind: Gauge<f64>,
}

/// The source of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Redis,
    Postgres,
    /// The query went to a replica first.
    Replica,
    /// The request shared a read of Postgres that another request had started.
    Joined,
}

impl Metrics {
    pub(crate) fn new(telemetry: &Telemetry, positions: &Arc<Positions>) -> Self {
        process::observe(telemetry);
        observe(telemetry, positions);
        Self {
            queries: telemetry.counter("stampede_queries", &["route", "status"], "Queries answered."),
            duration: telemetry.latency_histogram("stampede_query", "Time from a query's head to its answer."),
            reads: telemetry.counter("stampede_reads", &["view", "origin"], "Reads by origin."),
            token_waits: telemetry.counter(
                "stampede_token_waits",
                &["outcome"],
                "Queries with a consistency token, by outcome.",
            ),
            refused: telemetry.counter(
                "stampede_reads_refused",
                &["server"],
                "Queries refused because a server was overloaded, by server.",
            ),
            replica_usable: telemetry.gauge(
                "stampede_replica_usable",
                &["replica"],
                "1 if a replica of Postgres answers queries, 0 if its last probe did not find the log there.",
            ),
            replica_behind: telemetry.seconds_gauge(
                "stampede_replica_behind",
                &["replica"],
                "Age of the oldest record in the log that a usable replica of Postgres does not show.",
            ),
        }
    }

    pub(crate) fn answered(&self, route: String, status: u16, after: Duration) {
        let labels = [KeyValue::new("route", route), KeyValue::new("status", i64::from(status))];
        self.queries.add(1, &labels);
        self.duration.record(after.as_secs_f64(), &[]);
    }

    pub(crate) fn read(&self, view: &'static str, origin: Origin) {
        let origin = match origin {
            Origin::Redis => "redis",
            Origin::Postgres => "postgres",
            Origin::Replica => "replica",
            Origin::Joined => "joined",
        };
        self.reads.add(1, &[KeyValue::new("view", view), KeyValue::new("origin", origin)]);
    }

    pub(crate) fn refused(&self, server: &'static str) {
        self.refused.add(1, &[KeyValue::new("server", server)]);
    }

    /// Records the probe of a replica: how far it is behind, if that is known, or `None` if it is not usable.
    pub(crate) fn probed(&self, replica: usize, found: Option<Option<Duration>>) {
        let label = [KeyValue::new("replica", replica as i64)];
        self.replica_usable.record(found.is_some().into(), &label);
        if let Some(behind) = found.flatten() {
            self.replica_behind.record(behind.as_secs_f64(), &label);
        }
    }

    pub(crate) fn waited(&self, reached: &Result<Place, NotReached>) {
        let outcome = match reached {
            Ok(_) => "reached",
            Err(NotReached::Behind { .. }) => "not-yet",
            Err(NotReached::TooManyWaiters) => "refused",
            Err(NotReached::Ahead) => "ahead",
        };
        self.token_waits.add(1, &[KeyValue::new("outcome", outcome)]);
    }
}

/// Creates the gauges that are read from the positions when they are asked for.
fn observe(telemetry: &Telemetry, positions: &Arc<Positions>) {
    let progress = positions.clone();
    telemetry.observed_seconds_gauge(
        "stampede_view_behind",
        &["view", "server"],
        "Age of the oldest record in the log that a server does not show in a view.",
        move |gauge| {
            for feed in FeedId::all() {
                for (server, progress) in ["redis", "postgres"].into_iter().zip(progress.progress(feed)) {
                    if let Some(behind) = progress.and_then(|progress| progress.behind) {
                        let labels = [KeyValue::new("view", feed.name()), KeyValue::new("server", server)];
                        gauge.observe(behind.as_secs_f64(), &labels);
                    }
                }
            }
        },
    );
    let waiting = positions.clone();
    telemetry.observed_gauge(
        "stampede_token_waiters",
        &[],
        "Requests waiting for the views to reach their token.",
        move |gauge| gauge.observe(waiting.waiters().try_into().unwrap_or(u64::MAX), &[]),
    );
    let stored = positions.clone();
    telemetry.observed_seconds_gauge(
        "stampede_partition_behind",
        &["view", "partition"],
        "Age of the oldest record of a partition that Postgres does not show in a view.",
        move |gauge| {
            for feed in FeedId::all() {
                for (partition, behind) in stored.stored_behind(feed) {
                    let labels = [KeyValue::new("view", feed.name()), KeyValue::new("partition", i64::from(partition))];
                    gauge.observe(behind.as_secs_f64(), &labels);
                }
            }
        },
    );
    telemetry.observed_gauge(
        "stampede_token_waiters_limit",
        &[],
        "Requests that may wait for their token: limit of stampede_token_waiters.",
        |gauge| gauge.observe(MAX_WAITERS as u64, &[]),
    );
}

#[cfg(test)]
mod tests {
    use chassis::listeners::{ListenerSettings, Listeners};

    use super::*;

    #[test]
    fn the_reference_lists_every_metric() {
        let telemetry = Telemetry::new("query-api").unwrap();
        Metrics::new(&telemetry, &Arc::default());
        Listeners::new(&ListenerSettings::default(), &telemetry).unwrap();
        chassis::reference::check_metrics("query-api", &telemetry);
    }
}
