//! Compares this process's settings with those that all services of the log share, and changes the shared ones
//! (`projector settings`).

use std::time::Duration;

use anyhow::Context as _;
use chassis::exit::Misuse;
use chassis::postgres::{Connection, PostgresError, PostgresSettings};
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use chassis::telemetry::with_causes;
use schemas::settings::{self, Difference, Settings};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::config::Config;

const RETRY: Duration = Duration::from_millis(300);
/// Timeout of Postgres, after which it counts as unavailable.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
enum SettingsError {
    #[error(transparent)]
    Connect(#[from] PostgresError),
    #[error("reading the settings from Postgres failed")]
    Query(#[from] tokio_postgres::Error),
    #[error("Postgres does not answer")]
    Silent,
    #[error("the tables do not exist: run `projector migrate`")]
    NoTables,
    #[error(transparent)]
    Difference(#[from] Difference),
}

/// Waits until this process's settings are known to agree with those of the other services, or until shutdown.
///
/// # Errors
/// A setting differs from the stored one. An outage of Postgres is no error: without it, nothing can be folded and no
/// deadline can fire either.
pub(crate) async fn agree(
    config: &Config,
    partitions: u32,
    ready: &Condition,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let told = of(config).with(settings::PARTITIONS, partitions);
    while !shutdown.is_requested() {
        let kept = tokio::time::timeout(ANSWERS_WITHIN, keep(&config.postgres, &told)).await;
        match kept.unwrap_or(Err(SettingsError::Silent)) {
            Ok(()) => return Ok(()),
            Err(SettingsError::Difference(difference)) => return Err(Misuse::new(difference).into()),
            Err(error) => ready.waiting(with_causes(&error)),
        }
        shutdown.sleep(RETRY).await;
    }
    Ok(())
}

/// Compares the Redis prefix of a command-line tool with the stored one, and stores nothing.
pub(crate) async fn compare_prefix(config: &Config) -> anyhow::Result<()> {
    let client = connect(&config.postgres).await?;
    let told = Settings::default().with(settings::REDIS_PREFIX, &config.redis_prefix);
    compare(&client, &told).await
}

/// Compares the payment window of a command-line tool that sets deadlines with the stored one, and stores nothing.
pub(crate) async fn compare_payment_window(config: &Config) -> anyhow::Result<()> {
    let client = connect(&config.postgres).await?;
    let told = Settings::default().with_secs(settings::PAYMENT_WINDOW_SECS, config.payment_window);
    compare(&client, &told).await
}

/// Returns the settings that this process uses: one that folds nothing stores no idempotency keys, and one without a
/// reactor sets no deadlines.
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

async fn keep(postgres: &PostgresSettings, told: &Settings) -> Result<(), SettingsError> {
    let client = connect(postgres).await?;
    client.execute(settings::KEEP, &[&told.names, &told.values]).await.map_err(without_tables)?;
    difference(&client, told).await
}

async fn compare(client: &Client, told: &Settings) -> anyhow::Result<()> {
    difference(client, told).await.map_err(|error| match error {
        SettingsError::Difference(difference) => Misuse::new(difference).into(),
        error => error.into(),
    })
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

/// Runs the `settings` subcommand: prints the stored settings, or changes one.
pub async fn run(postgres: &PostgresSettings, mut args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    match args.next().as_deref() {
        None => {
            for row in connect(postgres).await?.query(settings::READ, &[]).await.map_err(without_tables)? {
                println!("{}={}", row.get::<_, &str>(0), row.get::<_, &str>(1));
            }
        }
        Some("set") => {
            let (Some(name), Some(value), None) = (args.next(), args.next(), args.next()) else {
                return Err(Misuse::new("usage: settings set NAME VALUE").into());
            };
            set(postgres, &name, &value).await?;
            println!("{name}={value}, for every service that is started from now on");
        }
        Some(other) => {
            return Err(Misuse::new(format!("unknown argument {other:?}; usage: settings [set NAME VALUE]")).into());
        }
    }
    Ok(())
}

/// Changes a setting that services must agree with when they start. Running services keep their value.
pub async fn set(postgres: &PostgresSettings, name: &str, value: &str) -> anyhow::Result<()> {
    settings::check(name, value).map_err(Misuse::new)?;
    let sql = "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2";
    connect(postgres)
        .await?
        .execute(sql, &[&name, &value])
        .await
        .map_err(without_tables)
        .context("change a setting")?;
    Ok(())
}

async fn connect(postgres: &PostgresSettings) -> Result<Connection, PostgresError> {
    chassis::postgres::connect(postgres, "", "projector settings").await
}
