//! Asks Postgres at intervals for what operators must know of it and no transaction of a projector shows.
//!
//! Every projector asks, with one connection of its own, so that no single one must be up. While the answer is late, the
//! gauges are absent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chassis::clock::since_epoch;
use chassis::postgres::{Connection, PostgresError, PostgresSettings};
use chassis::shutdown::Shutdown;
use chassis::telemetry::{Telemetry, with_causes};
use opentelemetry::KeyValue;

const EVERY: Duration = Duration::from_secs(10);
const TABLES_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
enum MeasureError {
    #[error(transparent)]
    Connect(#[from] PostgresError),
    #[error("Postgres statement failed")]
    Postgres(#[from] tokio_postgres::Error),
}

/// The last measurements; `None` while Postgres does not answer. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measurements(Arc<Mutex<Option<Measured>>>);

#[derive(Debug, Default)]
struct Measured {
    overdue: u64,
    oldest_overdue: Duration,
    /// Lead of this process's clock, in seconds.
    clock_skew: f64,
    held: Duration,
    tables: Vec<Table>,
}

/// Estimated rows of a table.
#[derive(Debug, Clone)]
struct Table {
    name: String,
    live: u64,
    dead: u64,
}

/// The transaction that holds back vacuum, and when it was first seen to.
#[derive(Debug, Default)]
struct Held(Option<(String, Instant)>);

impl Held {
    /// Returns for how long the same transaction has held back vacuum while `later` ones began.
    fn see(&mut self, xid: Option<String>, later: i64, now: Instant) -> Duration {
        self.0 = match (self.0.take(), xid.filter(|_| later > 0)) {
            (Some((known, since)), Some(xid)) if known == xid => Some((known, since)),
            (_, xid) => xid.map(|xid| (xid, now)),
        };
        self.0.as_ref().map_or(Duration::ZERO, |(_, since)| now - *since)
    }
}

impl Measurements {
    /// Creates the gauges.
    pub(crate) fn observed(telemetry: &Telemetry) -> Self {
        let measured = Self::default();
        let of = measured.clone();
        telemetry.observed_gauge(
            "stampede_deadlines_overdue",
            &[],
            "Deadlines whose time has passed and that have not fired, those that are parked not counted; at most 10000.",
            move |gauge| of.with(|measured| gauge.observe(measured.overdue, &[])),
        );
        measured.observe_seconds(
            telemetry,
            "stampede_deadline_overdue",
            "Time since the first of the overdue deadlines was due; 0 without one.",
            |measured| measured.oldest_overdue.as_secs_f64(),
        );
        measured.observe_seconds(
            telemetry,
            "stampede_postgres_clock_skew",
            "Lead of this instance's clock over that of Postgres.",
            |measured| measured.clock_skew,
        );
        measured.observe_seconds(
            telemetry,
            "stampede_postgres_vacuum_held",
            "Time for which one transaction, replica or slot has kept vacuum from removing dead rows.",
            |measured| measured.held.as_secs_f64(),
        );
        measured.observe_tables(telemetry, "stampede_postgres_live_rows", "Rows of the largest tables.", |table| {
            table.live
        });
        measured.observe_tables(
            telemetry,
            "stampede_postgres_dead_rows",
            "Dead rows of the largest tables, which vacuum has not removed.",
            |table| table.dead,
        );
        measured
    }

    fn observe_seconds(
        &self,
        telemetry: &Telemetry,
        name: &'static str,
        what: &'static str,
        value: impl Fn(&Measured) -> f64 + Send + Sync + 'static,
    ) {
        let of = self.clone();
        telemetry.observed_seconds_gauge(name, &[], what, move |gauge| {
            of.with(|measured| gauge.observe(value(measured), &[]));
        });
    }

    fn observe_tables(
        &self,
        telemetry: &Telemetry,
        name: &'static str,
        what: &'static str,
        value: impl Fn(&Table) -> u64 + Send + Sync + 'static,
    ) {
        let of = self.clone();
        telemetry.observed_gauge(name, &["table"], what, move |gauge| {
            of.with(|measured| {
                for table in &measured.tables {
                    gauge.observe(value(table), &[KeyValue::new("table", table.name.clone())]);
                }
            });
        });
    }

    fn with(&self, observe: impl FnOnce(&Measured)) {
        if let Some(measured) = &*self.lock() {
            observe(measured);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Measured>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures until shutdown.
    pub(crate) async fn run(self, postgres: PostgresSettings, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let error = tokio::select! {
                Err(error) = self.measure_on(&postgres) => error,
                () = shutdown.requested() => return,
            };
            *self.lock() = None;
            tracing::debug!(error = with_causes(&error), "Postgres was not measured");
            shutdown.sleep(EVERY).await;
        }
    }

    /// Measures until Postgres fails.
    async fn measure_on(&self, postgres: &PostgresSettings) -> Result<(), MeasureError> {
        let client = chassis::postgres::connect(postgres, "", "projector measurements").await?;
        let (mut held, mut tables) = (Held::default(), (Instant::now(), measure_tables(&client).await?));
        loop {
            if tables.0.elapsed() >= TABLES_EVERY {
                tables = (Instant::now(), measure_tables(&client).await?);
            }
            let measured = measure(&client, &mut held, tables.1.clone()).await?;
            *self.lock() = Some(measured);
            tokio::time::sleep(EVERY).await;
        }
    }
}

async fn measure(client: &Connection, held: &mut Held, tables: Vec<Table>) -> Result<Measured, MeasureError> {
    let asked = since_epoch();
    let row = client.query_one(include_str!("measure.sql"), &[]).await?;
    let halfway = (asked + since_epoch()) / 2;
    Ok(Measured {
        overdue: row.get::<_, i64>(0).cast_unsigned(),
        oldest_overdue: Duration::try_from_secs_f64(row.get(1)).unwrap_or_default(),
        clock_skew: halfway.as_secs_f64() - row.get::<_, f64>(2),
        held: held.see(row.get(3), row.get(4), Instant::now()),
        tables,
    })
}

async fn measure_tables(client: &Connection) -> Result<Vec<Table>, MeasureError> {
    let rows = client.query(include_str!("measure_tables.sql"), &[]).await?;
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let table =
        |row: &tokio_postgres::Row| Table { name: row.get(0), live: number(row.get(1)), dead: number(row.get(2)) };
    Ok(rows.iter().map(table).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vacuum_is_held_while_the_same_transaction_is_the_oldest_and_others_are_younger() {
        let (mut held, begun) = (Held::default(), Instant::now());
        let mut see =
            |secs, xid: &str, later| held.see(Some(xid.to_owned()), later, begun + Duration::from_secs(secs)).as_secs();
        assert_eq!([see(0, "7", 3), see(10, "7", 5), see(20, "7", 9)], [0, 10, 20]);
        assert_eq!(see(30, "8", 1), 0, "another one");
        assert_eq!([see(40, "8", 0), see(50, "8", 1)], [0, 0], "nothing else was written meanwhile");
        assert_eq!(held.see(None, 0, begun + Duration::from_secs(60)), Duration::ZERO);
    }

    #[test]
    fn nothing_is_shown_while_postgres_does_not_answer() {
        let telemetry = Telemetry::new("projector").unwrap();
        let measurements = Measurements::observed(&telemetry);
        assert_eq!(telemetry.render().unwrap(), "");
        let table = Table { name: "order_rows".to_owned(), live: 5, dead: 2 };
        *measurements.lock() = Some(Measured { overdue: 3, tables: vec![table], ..Measured::default() });
        let text = telemetry.render().unwrap();
        for line in ["stampede_deadlines_overdue 3", "stampede_postgres_dead_rows{table=\"order_rows\"} 2"] {
            assert!(text.contains(line), "{text}");
        }
    }
}
