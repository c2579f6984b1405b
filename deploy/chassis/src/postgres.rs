//! Pools of connections to Postgres, and single connections.

mod connector;
mod settings;

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use deadpool_postgres::{BuildError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::{Client, Config};
use tokio_util::task::AbortOnDropHandle;

use crate::tls::TlsError;
use connector::Connector;
pub use settings::PostgresSettings;

/// Time limit for connecting to a host over TCP: the caller retries, and meanwhile reports the dependency it waits for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time limit for opening a connection. [`CONNECT_TIMEOUT`] only covers TCP; this also covers authentication by a
/// server that was stopped.
const CONNECT_WITHIN: Duration = Duration::from_secs(4);

/// Maximum time that a caller waits for a free connection. A longer wait means overload, which is better refused than
/// queued.
const POOL_WAIT: Duration = Duration::from_secs(2);

/// Time limit for recycling a connection. Recycling only checks a flag; the limit exists so that every wait has one.
const POOL_RECYCLE: Duration = Duration::from_secs(1);

/// Limits that the server enforces for each of our sessions.
const SESSION_OPTIONS: &str = concat!(
    // A stopped process keeps its row locks, and the process that takes over waits for them: end its transaction.
    "-c idle_in_transaction_session_timeout=3s",
    // A value above the limit above would have no effect, and no transaction of ours takes that long.
    " -c lock_timeout=2s",
    // Our statements take milliseconds; a runaway one must not hold locks and a pooled connection.
    " -c statement_timeout=10s",
    // Our statements touch few rows: JIT compilation costs more than it saves.
    " -c jit=off",
    // If the client's host vanishes, the server detects it within about 5 + 3 × 2 s and releases its locks.
    " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=10s",
);

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error("invalid Postgres URL")]
    Url(#[source] tokio_postgres::Error),
    #[error("the Postgres URL cannot be used: {0}")]
    SslMode(&'static str),
    #[error("preparing TLS to Postgres failed")]
    Tls(#[from] TlsError),
    #[error("connecting to Postgres failed")]
    Connect(#[source] tokio_postgres::Error),
    #[error("Postgres does not answer")]
    Silent,
    #[error("building the Postgres pool failed")]
    Build(#[source] BuildError),
}

/// Creates a pool of at most `max_size` connections, which are opened on first use.
///
/// Every wait is bounded: 2 s for a free connection, 4 s to open one. A connection belongs to the runtime that opened
/// it.
///
/// # Errors
/// [`PostgresError::Url`] if the URL is malformed. An unreachable server becomes an error on taking a connection.
pub fn pool(
    postgres: &PostgresSettings,
    options: &str,
    max_size: usize,
    application_name: &str,
) -> Result<Pool, PostgresError> {
    // Fast recycling checks locally whether a connection is closed; asking the server would cost a round trip each
    // time. A query may therefore get a connection that has just died; all of our queries can be repeated.
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let (config, connector) = session(postgres, options, application_name)?;
    Pool::builder(Manager::from_connect(config, connector, recycling))
        .max_size(max_size)
        .wait_timeout(Some(POOL_WAIT))
        .create_timeout(Some(CONNECT_WITHIN))
        .recycle_timeout(Some(POOL_RECYCLE))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(PostgresError::Build)
}

/// A connection outside a pool: its client, and the task that drives it, which is aborted when this is dropped.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    _driver: AbortOnDropHandle<()>,
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Opens one connection outside a pool. `options` (`-c name=value …`) override our limits: work that takes longer on
/// purpose lifts one this way, or with `SET`.
///
/// If the server closes the connection, the reason is logged.
///
/// # Errors
/// [`PostgresError::Connect`] if the server is unreachable or refuses, [`PostgresError::Silent`] if it does not answer
/// within 4 s.
pub async fn connect(
    postgres: &PostgresSettings,
    options: &str,
    application_name: &'static str,
) -> Result<Connection, PostgresError> {
    let (config, connector) = session(postgres, options, application_name)?;
    let connecting = tokio::time::timeout(CONNECT_WITHIN, connector.open(config));
    let (client, driver) = connecting.await.map_err(|_| PostgresError::Silent)?.map_err(PostgresError::Connect)?;
    Ok(Connection { client, _driver: AbortOnDropHandle::new(driver) })
}

/// Returns the settings of a session, and what opens it. Options in the URL are kept; our limits override them, and
/// `options` override both.
fn session(
    postgres: &PostgresSettings,
    options: &str,
    application_name: &str,
) -> Result<(Config, Connector), PostgresError> {
    let mut config = postgres.config()?;
    let connector = Connector::new(postgres, &config)?;
    let of_url = config.get_options().map_or(String::new(), |given| format!("{given} "));
    config
        .options(format!("{of_url}{SESSION_OPTIONS} {options}"))
        .application_name(application_name)
        .connect_timeout(CONNECT_TIMEOUT)
        // Detects a vanished host on an idle connection within about 5 + 3 × 2 s; the default is 2 hours.
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(2))
        .keepalives_retries(3)
        // Detects it while data is unacknowledged and no keepalives are sent; the default is about 15 minutes.
        .tcp_user_timeout(Duration::from_secs(10));
    Ok((config, connector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessions_limits_follow_the_options_of_the_url() {
        let postgres = "postgres://me:pw@localhost/db?options=-c%20search_path%3Dshop".into();
        let (config, _) = session(&postgres, "", "projector").unwrap();
        let options = config.get_options().unwrap();
        assert!(options.starts_with("-c search_path=shop -c idle_in_transaction_session_timeout=3s"), "{options}");
        assert_eq!(config.get_application_name(), Some("projector"));
    }

    #[tokio::test]
    async fn a_pool_is_built_without_a_server_and_fails_when_used() {
        let pool = pool(&"postgres://me:pw@127.0.0.1:1/db".into(), "", 2, "test").unwrap();
        assert!(pool.get().await.is_err());
    }

    #[tokio::test]
    async fn an_unreachable_server_and_a_silent_one_are_distinguished() {
        let connect = async |port| connect(&format!("postgres://me:pw@127.0.0.1:{port}/db").into(), "", "test").await;
        assert!(matches!(connect(1).await, Err(PostgresError::Connect(_))));
        let stopped = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = stopped.local_addr().unwrap().port();
        assert!(matches!(connect(port).await, Err(PostgresError::Silent)));
    }

    #[test]
    fn an_error_does_not_show_the_url() {
        let error = pool(&"postgres://me:hunter2@host:port/db".into(), "", 2, "test").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}
