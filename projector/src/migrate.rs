//! Applies the database migrations.

use anyhow::Context as _;
use chassis::postgres::PostgresSettings;
use refinery_core::{Migration, Runner};
use schemas::tables::MIGRATIONS;

/// Applies the pending migrations. Idempotent; concurrent runs are serialized by an advisory lock.
pub async fn migrate(postgres: &PostgresSettings) -> anyhow::Result<()> {
    let mut client = chassis::postgres::connect(postgres, "", "projector migrate").await?;
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0; SELECT pg_advisory_lock(7)").await?;
    let migrations =
        MIGRATIONS.iter().map(|(name, sql)| Migration::unapplied(name, sql)).collect::<Result<Vec<_>, _>>()?;
    let report = Runner::new(&migrations).run_async(&mut *client).await.context("apply the migrations")?;
    tracing::info!(applied = report.applied_migrations().len(), "database schema is up to date");
    Ok(())
}
