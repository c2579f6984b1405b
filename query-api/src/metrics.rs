//! Metrics of this service. Their names and units are part of its interface.

use std::sync::Arc;
use std::time::Duration;

use chassis::telemetry::Telemetry;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};
use schemas::feeds::FeedId;

use crate::positions::{NotReached, Place, Positions};

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
        let positions = positions.clone();
        telemetry.observed_gauge(
            "stampede_token_waiters",
            &[],
            "Requests waiting for the views to reach their token.",
            move |gauge| gauge.observe(positions.waiters().try_into().unwrap_or(u64::MAX), &[]),
        );
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
