//! Opening of connections.

use std::pin::Pin;
use std::time::Duration;

use deadpool_postgres::Connect;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Connection, Error, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{PostgresError, PostgresSettings};
use crate::env::LiveSecret;

/// Time for the file of the password to follow a change at the server.
const CHANGES_WITHIN: Duration = Duration::from_millis(500);

/// Opens connections with the current password, by TLS if the URL asks for it.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Option<MakeRustlsConnect>,
    password: Option<LiveSecret>,
}

/// A client, and the task that drives its connection.
type Opened = (Client, JoinHandle<()>);

impl Connector {
    pub(super) fn new(postgres: &PostgresSettings, config: &Config) -> Result<Self, PostgresError> {
        let is_tls = config.get_ssl_mode() != SslMode::Disable;
        Ok(Self { tls: is_tls.then(|| postgres.tls()).transpose()?, password: postgres.password() })
    }

    pub(super) async fn open(&self, mut config: Config) -> Result<Opened, Error> {
        let Some(password) = &self.password else { return self.attempt(config).await };
        let current = password.current();
        match self.attempt(config.password(current.expose()).clone()).await {
            // The server has learned a new password, and the file follows.
            Err(error) if error.code() == Some(&SqlState::INVALID_PASSWORD) => {
                let Some(new) = password.changed_within(&current, CHANGES_WITHIN).await else { return Err(error) };
                self.attempt(config.password(new.expose()).clone()).await
            }
            opened => opened,
        }
    }

    async fn attempt(&self, config: Config) -> Result<Opened, Error> {
        let name = config.get_application_name().unwrap_or_default().to_owned();
        match &self.tls {
            Some(tls) => {
                config.connect(tls.clone()).await.map(|(client, connection)| (client, drive(connection, name)))
            }
            None => config.connect(NoTls).await.map(|(client, connection)| (client, drive(connection, name))),
        }
    }
}

fn drive<S>(connection: Connection<Socket, S>, application_name: String) -> JoinHandle<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // Statements that fail because of this only report that the connection is closed.
            tracing::warn!(error = %error, application_name, "connection to Postgres lost");
        }
    })
}

impl Connect for Connector {
    fn connect(&self, config: &Config) -> Pin<Box<dyn Future<Output = Result<Opened, Error>> + Send + '_>> {
        Box::pin(self.open(config.clone()))
    }
}
