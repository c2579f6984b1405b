//! Brings the tables up to date.

use anyhow::Context as _;
use chassis::env::Secret;
use refinery::{Migration, Runner};
use schemas::tables::MIGRATIONS;

/// Repeatable: what was applied is not applied again. Two that run at once wait for each other.
pub async fn migrate(url: &Secret) -> anyhow::Result<()> {
    let mut client = chassis::postgres::connect(url, "", "projector migrate").await?;
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0; SELECT pg_advisory_lock(7)").await?;
    let migrations =
        MIGRATIONS.iter().map(|(name, sql)| Migration::unapplied(name, sql)).collect::<Result<Vec<_>, _>>()?;
    let report = Runner::new(&migrations).run_async(&mut client).await.context("apply the migrations")?;
    tracing::info!(applied = report.applied_migrations().len(), "the tables are up to date");
    Ok(())
}
