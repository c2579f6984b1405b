//! Reads of what the instances report, and of what is parked. They bypass the query limits.

use std::time::Duration;

use schemas::status::Report;
use schemas::time::TimeMs;

use super::{Store, StoreError};

/// An instance's last report.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) service: String,
    /// `None` if this build cannot parse it.
    pub(crate) report: Option<Report>,
    /// Age of the report, by the clock of Postgres.
    pub(crate) age: Duration,
}

/// The records that are parked for a view or for the reactors.
#[derive(Debug, Clone)]
pub(crate) struct ParkedCount {
    pub(crate) view: String,
    pub(crate) records: i64,
    pub(crate) since: TimeMs,
}

impl Store {
    pub(crate) async fn instances(&self) -> Result<Vec<Instance>, StoreError> {
        let rows = self.primary.query_apart(include_str!("instances.sql"), &[]).await?;
        let instance = |row: &tokio_postgres::Row| Instance {
            name: row.get(0),
            service: row.get(1),
            report: serde_json::from_str(row.get(2)).ok(),
            age: Duration::from_millis(u64::try_from(row.get::<_, i64>(3)).unwrap_or(0)),
        };
        Ok(rows.iter().map(instance).collect())
    }

    pub(crate) async fn parked_counts(&self) -> Result<Vec<ParkedCount>, StoreError> {
        let rows = self.primary.query_apart(include_str!("parked.sql"), &[]).await?;
        let count = |row: &tokio_postgres::Row| ParkedCount {
            view: row.get(0),
            records: row.get(1),
            since: TimeMs(u64::try_from(row.get::<_, i64>(2)).unwrap_or(0)),
        };
        Ok(rows.iter().map(count).collect())
    }
}
