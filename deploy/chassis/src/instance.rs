//! The name of this instance, and its reports about itself in Postgres.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use deadpool_postgres::{Pool, PoolError};

use crate::postgres::{PostgresError, PostgresSettings, pool};
use crate::shutdown::Shutdown;
use crate::telemetry::with_causes;

/// Interval at which an instance looks at itself.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Maximum time between two reports. A change is reported at once.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Time limit for the last statement of an instance that ends.
const REMOVE_WITHIN: Duration = Duration::from_secs(1);

/// The statements that keep and remove a report.
#[derive(Debug, Clone, Copy)]
pub struct Statements {
    /// Parameters: the instance, the service, the report.
    pub keep: &'static str,
    /// Parameter: the instance.
    pub remove: &'static str,
}

/// Publisher of an instance's reports, over a connection of its own: the service's may all be in use.
#[derive(Debug)]
pub struct Reporter {
    pool: Pool,
    statements: Statements,
    service: &'static str,
    instance: String,
}

#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error("no connection to Postgres")]
    Connection(#[from] PoolError),
    #[error("the statement failed")]
    Query(#[from] tokio_postgres::Error),
}

/// Returns a name that no other running instance has: the service, the host, and the port of the admin listener. It
/// stays the same after a restart with the same settings.
pub fn name(service: &str, admin: SocketAddr) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("unknown");
    format!("{service}@{host}:{}", admin.port())
}

impl Reporter {
    pub fn new(
        postgres: &PostgresSettings,
        statements: Statements,
        service: &'static str,
        admin: SocketAddr,
    ) -> Result<Self, PostgresError> {
        Ok(Self { pool: pool(postgres, "", 1, service)?, statements, service, instance: name(service, admin) })
    }

    /// Reports when `look` returns something else than before, and every few seconds; removes the report at shutdown.
    /// Nothing depends on a report, so a failure is only logged, once for each outage.
    pub async fn run(self, mut look: impl FnMut() -> String + Send, shutdown: Shutdown) {
        let (mut last, mut is_up) = (None::<(String, Instant)>, true);
        while !shutdown.is_requested() {
            let report = look();
            let is_due = last.as_ref().is_none_or(|(text, at)| *text != report || at.elapsed() >= REPORT_EVERY);
            if is_due {
                match self.keep(&report).await {
                    Ok(()) => (last, is_up) = (Some((report, Instant::now())), true),
                    Err(error) if std::mem::take(&mut is_up) => {
                        tracing::info!(error = with_causes(&error), "this instance's report cannot be stored");
                    }
                    Err(_) => {}
                }
            }
            shutdown.sleep(LOOK_EVERY).await;
        }
        // Postgres may be gone; the report is forgotten after a while anyway.
        let _ = tokio::time::timeout(REMOVE_WITHIN, self.remove()).await;
    }

    async fn keep(&self, report: &str) -> Result<(), ReportError> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(self.statements.keep).await?;
        client.execute(&statement, &[&self.instance, &self.service, &report]).await?;
        Ok(())
    }

    async fn remove(&self) -> Result<(), ReportError> {
        self.pool.get().await?.execute(self.statements.remove, &[&self.instance]).await?;
        Ok(())
    }
}
