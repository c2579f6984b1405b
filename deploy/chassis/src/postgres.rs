//! Connections to Postgres.

use std::time::Duration;

use deadpool_postgres::{BuildError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::{Client, Config, NoTls};

use crate::env::Secret;

/// A host that does not answer is given up after this long: the caller retries, and says meanwhile what it waits for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// [`CONNECT_TIMEOUT`] covers TCP alone; this covers the password's handshake with a stopped server, too.
const CONNECT_WITHIN: Duration = Duration::from_secs(4);

/// How long a caller waits for a free connection. Longer means overload, which is better refused than queued.
const POOL_WAIT: Duration = Duration::from_secs(2);

/// Recycling looks at a flag and does not ask the server; the limit is there so that every wait has one.
const POOL_RECYCLE: Duration = Duration::from_secs(1);

/// Limits that the server keeps for each session of ours.
const SESSION_OPTIONS: &str = concat!(
    // A stopped process keeps its row locks, and whoever takes over waits for them: end its transaction.
    "-c idle_in_transaction_session_timeout=3s",
    // Longer than the limit above would be of no use, and no transaction of ours takes as long.
    " -c lock_timeout=2s",
    // Our statements take milliseconds; a runaway must not hold locks and a pool's connection.
    " -c statement_timeout=10s",
    // Our statements touch few rows: compiling one costs more than it saves.
    " -c jit=off",
    // A client's host that vanished: the server too notices within about 5 + 3 × 2 s and lets its locks go.
    " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=10s",
);

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error("the Postgres URL cannot be parsed")]
    Url(#[source] tokio_postgres::Error),
    #[error("could not connect to Postgres")]
    Connect(#[source] tokio_postgres::Error),
    #[error("Postgres does not answer")]
    Silent,
    #[error("the Postgres pool cannot be built")]
    Build(#[source] BuildError),
}

/// A pool of at most `max_size` connections, which are opened when first needed.
///
/// Every wait is bounded: 2 s for a free connection, 4 s to open one. A connection belongs to the runtime that opened
/// it. There is no TLS: a URL that requires it fails when connecting.
///
/// # Errors
/// [`PostgresError::Url`] where the URL is malformed. A server that is not there shows when a connection is asked for.
pub fn pool(url: &Secret, options: &str, max_size: usize, application_name: &str) -> Result<Pool, PostgresError> {
    // Fast: whether a connection still lives is known locally, and asking the server would cost a round trip each time.
    // A query may therefore meet a connection that has just died; all of ours can be repeated.
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    Pool::builder(Manager::from_config(session(url, options, application_name)?, NoTls, recycling))
        .max_size(max_size)
        .wait_timeout(Some(POOL_WAIT))
        .create_timeout(Some(CONNECT_WITHIN))
        .recycle_timeout(Some(POOL_RECYCLE))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(PostgresError::Build)
}

/// Opens one connection, for whoever needs one outside a pool. It ends when the client is dropped, or with the runtime.
/// `options` (`-c name=value …`) win over our limits: work that takes longer on purpose lifts one so, or by `SET`.
///
/// Where the server ends it, the log tells why.
///
/// # Errors
/// [`PostgresError::Connect`] where the server is not there or refuses, [`PostgresError::Silent`] where it says nothing
/// for 4 s.
pub async fn connect(url: &Secret, options: &str, application_name: &'static str) -> Result<Client, PostgresError> {
    let config = session(url, options, application_name)?;
    let connecting = tokio::time::timeout(CONNECT_WITHIN, config.connect(NoTls));
    let (client, connection) = connecting.await.map_err(|_| PostgresError::Silent)?.map_err(PostgresError::Connect)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // The statements that fail with it say no more than that it is closed.
            tracing::warn!(error = %error, application_name, "a connection to Postgres is gone");
        }
    });
    Ok(client)
}

/// Returns the settings of one connection. Options in the URL are kept, but ours win, and `options` over these.
fn session(url: &Secret, options: &str, application_name: &str) -> Result<Config, PostgresError> {
    let mut config: Config = url.expose().parse().map_err(PostgresError::Url)?;
    let of_url = config.get_options().map_or(String::new(), |given| format!("{given} "));
    config
        .options(format!("{of_url}{SESSION_OPTIONS} {options}"))
        .application_name(application_name)
        .connect_timeout(CONNECT_TIMEOUT)
        // An idle connection to a host that vanished is noticed within about 5 + 3 × 2 s; the default is 2 hours.
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(2))
        .keepalives_retries(3)
        // The same for one with unacknowledged data, where keepalives are not sent; the default is about 15 minutes.
        .tcp_user_timeout(Duration::from_secs(10));
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessions_limits_follow_the_options_of_the_url() {
        let url = Secret::from("postgres://me:pw@localhost/db?options=-c%20search_path%3Dshop");
        let config = session(&url, "", "projector").unwrap();
        let options = config.get_options().unwrap();
        assert!(options.starts_with("-c search_path=shop -c idle_in_transaction_session_timeout=3s"), "{options}");
        assert_eq!(config.get_application_name(), Some("projector"));
    }

    #[tokio::test]
    async fn a_pool_is_built_without_a_server_and_fails_when_used() {
        let pool = pool(&Secret::from("postgres://me:pw@127.0.0.1:1/db"), "", 2, "test").unwrap();
        assert!(pool.get().await.is_err());
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_and_one_that_says_nothing_are_told_apart() {
        let connect = async |port| connect(&format!("postgres://me:pw@127.0.0.1:{port}/db").into(), "", "test").await;
        assert!(matches!(connect(1).await, Err(PostgresError::Connect(_))));
        let stopped = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = stopped.local_addr().unwrap().port();
        assert!(matches!(connect(port).await, Err(PostgresError::Silent)));
    }

    #[test]
    fn an_error_does_not_show_the_url() {
        let error = pool(&Secret::from("postgres://me:hunter2@host:port/db"), "", 2, "test").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}
