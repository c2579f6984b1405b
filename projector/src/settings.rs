//! Compares the settings that all services of the log share, and changes them on purpose: `projector settings`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chassis::env::Secret;
use chassis::postgres::PostgresError;
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use schemas::settings::{self, Difference, Settings};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::config::Config;

const RETRY: Duration = Duration::from_millis(300);
/// A server that says nothing for so long is not there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
enum SettingsError {
    #[error(transparent)]
    Connect(#[from] PostgresError),
    #[error("the settings in Postgres cannot be read")]
    Query(#[from] tokio_postgres::Error),
    #[error("Postgres does not answer")]
    Silent,
    #[error("the tables are not there: run `projector migrate`")]
    NoTables,
    #[error(transparent)]
    Difference(#[from] Difference),
}

/// Returns once this process is known to be told what the other services are, or at shutdown.
///
/// # Errors
/// A setting differs from what is kept. Without Postgres it waits: nothing can be folded or fired then either.
pub(crate) async fn agree(
    config: &Config,
    partitions: u32,
    ready: &Condition,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let told = of(config).with(settings::PARTITIONS, partitions);
    while !shutdown.is_requested() {
        let kept = tokio::time::timeout(ANSWERS_WITHIN, keep(&config.postgres_url, &told)).await;
        match kept.unwrap_or(Err(SettingsError::Silent)) {
            Ok(()) => return Ok(()),
            Err(SettingsError::Difference(difference)) => return Err(difference.into()),
            Err(error) => ready.waiting(format!("{:#}", anyhow::Error::from(error))),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = shutdown.requested() => {}
        }
    }
    Ok(())
}

/// Compares the prefix that a tool beside the services is told, and keeps nothing.
pub(crate) async fn compare_prefix(config: &Config) -> anyhow::Result<()> {
    let client = connect(&config.postgres_url).await?;
    let told = Settings::default().with(settings::REDIS_PREFIX, &config.redis_prefix);
    Ok(difference(&client, &told).await?)
}

/// Compares the time that a tool which sets deadlines is told, and keeps nothing.
pub(crate) async fn compare_payment_window(config: &Config) -> anyhow::Result<()> {
    let client = connect(&config.postgres_url).await?;
    let told = Settings::default().with_secs(settings::PAYMENT_WINDOW_SECS, config.payment_window);
    Ok(difference(&client, &told).await?)
}

/// Those that this process goes by: one that folds nothing remembers no keys, and one that does not react sets no
/// deadlines.
fn of(config: &Config) -> Settings {
    let mut told = Settings::default().with(settings::REDIS_PREFIX, &config.redis_prefix);
    if !config.feeds.is_empty() {
        told = told.with_secs(settings::IDEMPOTENCY_WINDOW_SECS, config.window);
    }
    if !config.command_urls.is_empty() {
        told = told
            .with_secs(settings::PAYMENT_WINDOW_SECS, config.payment_window)
            .with_secs(settings::CONFIRM_WITHIN_SECS, config.confirm_within);
    }
    told
}

async fn keep(url: &Secret, told: &Settings) -> Result<(), SettingsError> {
    let client = connect(url).await?;
    client.execute(settings::KEEP, &[&told.names, &told.values]).await.map_err(without_tables)?;
    difference(&client, told).await
}

async fn difference(client: &Client, told: &Settings) -> Result<(), SettingsError> {
    let rows = client.query(settings::READ, &[]).await.map_err(without_tables)?;
    told.difference(rows.iter().map(|row| (row.get(0), row.get(1)))).map_or(Ok(()), |differs| Err(differs.into()))
}

fn without_tables(error: tokio_postgres::Error) -> SettingsError {
    match error.code() {
        Some(&SqlState::UNDEFINED_TABLE) => SettingsError::NoTables,
        _ => error.into(),
    }
}

/// Carries out the command line behind `settings`: prints what is kept, or changes it.
pub async fn run(url: &Secret, mut args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    match args.next().as_deref() {
        None => {
            for row in connect(url).await?.query(settings::READ, &[]).await.map_err(without_tables)? {
                println!("{}={}", row.get::<_, &str>(0), row.get::<_, &str>(1));
            }
        }
        Some("set") => {
            let (Some(name), Some(value), None) = (args.next(), args.next(), args.next()) else {
                bail!("settings set NAME VALUE");
            };
            set(url, &name, &value).await?;
            println!("{name}={value}, for every service that is started from now on");
        }
        Some(other) => bail!("{other:?} is not understood: settings, or settings set NAME VALUE"),
    }
    Ok(())
}

/// Changes what services have to be told when they are started. Those that run go on with what they were told.
pub async fn set(url: &Secret, name: &str, value: &str) -> anyhow::Result<()> {
    settings::check(name, value).map_err(anyhow::Error::msg)?;
    let sql = "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2";
    connect(url).await?.execute(sql, &[&name, &value]).await.map_err(without_tables).context("change a setting")?;
    Ok(())
}

async fn connect(url: &Secret) -> Result<Client, PostgresError> {
    chassis::postgres::connect(url, "", "projector settings").await
}
