//! A connection that asks again whom to connect to, and with which password, after any failure.
//!
//! The library's own manager connects again only after the connection was lost: one refused password, such as while it is
//! being changed, would end it for good.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisResult,
    ServerErrorKind, TlsCertificates, TlsMode, Value,
};

use super::settings::Credentials;
use super::{CONNECTION_TIMEOUT, RESPONSE_TIMEOUT, RETRY_DELAY, silent};

/// Time limit for finding the server and connecting to it.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// Sentinels, and the master that they watch.
#[derive(Clone)]
pub(super) struct Sentinels {
    pub(super) nodes: Vec<ConnectionInfo>,
    pub(super) name: String,
    /// Set if the sentinels ask for the servers' account.
    pub(super) is_same_account: bool,
    pub(super) credentials: Option<Credentials>,
    pub(super) certificates: Option<TlsCertificates>,
}

impl Sentinels {
    /// Returns a client of the current master, which says itself that it is one.
    pub(super) async fn master(&self) -> RedisResult<Client> {
        self.client()?.async_get_client().await
    }

    fn client(&self) -> RedisResult<SentinelClient> {
        let account =
            |node: &ConnectionInfo| self.credentials.as_ref().map_or(node.clone(), |it| it.apply(node.clone()));
        let account = account(&self.nodes[0]);
        let account = account.redis_settings();
        let addresses = self.nodes.iter().map(|node| node.addr().clone());
        let mut builder = SentinelClientBuilder::new(addresses, &self.name, SentinelServerType::Master)?;
        if matches!(self.nodes[0].addr(), ConnectionAddr::TcpTls { .. }) {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            if let Some(certificates) = &self.certificates {
                builder = builder.set_client_to_redis_certificates(certificates.clone());
                builder = builder.set_client_to_sentinel_certificates(certificates.clone());
            }
        }
        if let Some(user) = account.username() {
            builder = builder.set_client_to_redis_username(user);
            if self.is_same_account {
                builder = builder.set_client_to_sentinel_username(user);
            }
        }
        if let Some(password) = account.password() {
            builder = builder.set_client_to_redis_password(password);
            if self.is_same_account {
                builder = builder.set_client_to_sentinel_password(password);
            }
        }
        builder.build()
    }
}

/// Whom to connect to.
#[derive(Clone)]
pub(super) enum Target {
    Server(Client, Credentials),
    Sentinels(Sentinels),
}

impl Target {
    fn credentials(&self) -> Option<Credentials> {
        match self {
            Self::Server(_, credentials) => Some(credentials.clone()),
            Self::Sentinels(sentinels) => sentinels.credentials.clone(),
        }
    }

    async fn client(&self) -> RedisResult<Client> {
        match self {
            Self::Server(client, _) => Ok(client.clone()),
            Self::Sentinels(sentinels) => sentinels.master().await,
        }
    }

    async fn connect(self) -> RedisResult<MultiplexedConnection> {
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECTION_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        if let Some(credentials) = self.credentials() {
            config = config.set_credentials_provider(credentials);
        }
        let connecting = async { self.client().await?.get_multiplexed_async_connection_with_config(&config).await };
        let connected = tokio::time::timeout(CONNECT_WITHIN, connecting).await.unwrap_or_else(|_| Err(silent()));
        if connected.is_err() {
            // Limits the rate of attempts, however many commands need one.
            tokio::time::sleep(RETRY_DELAY).await;
        }
        connected
    }
}

type Connecting = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

/// A connection that its clones share. The first command opens it, and so does a command after its loss, after a failed
/// attempt, or after its master became a replica.
#[derive(Clone)]
pub struct Reconnecting {
    target: Arc<Target>,
    current: Arc<Mutex<Option<Connecting>>>,
}

impl Reconnecting {
    pub(super) fn new(target: Target) -> Self {
        Self { target: Arc::new(target), current: Arc::default() }
    }

    pub(super) async fn command(&self, command: &Cmd) -> RedisResult<Value> {
        let (connecting, mut connection) = self.connected().await?;
        let answer = connection.req_packed_command(command).await;
        self.judge(&connecting, answer)
    }

    pub(super) async fn commands(&self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let (connecting, mut connection) = self.connected().await?;
        let answer = connection.req_packed_commands(pipeline, offset, count).await;
        self.judge(&connecting, answer)
    }

    pub(super) fn database(&self) -> i64 {
        let info = match &*self.target {
            Target::Server(client, _) => client.get_connection_info(),
            Target::Sentinels(sentinels) => &sentinels.nodes[0],
        };
        info.redis_settings().db()
    }

    /// Returns the connection, with the attempt that made it. An attempt in progress is shared.
    async fn connected(&self) -> RedisResult<(Connecting, MultiplexedConnection)> {
        let connecting = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.get_or_insert_with(|| Target::clone(&self.target).connect().boxed().shared()).clone()
        };
        match connecting.clone().await {
            Ok(connection) => Ok((connecting, connection)),
            Err(error) => {
                self.forget(&connecting);
                Err(error)
            }
        }
    }

    /// Forgets the connection after an error that the next master may not have.
    fn judge<T>(&self, used: &Connecting, answer: RedisResult<T>) -> RedisResult<T> {
        if answer.as_ref().is_err_and(needs_another_connection) {
            self.forget(used);
        }
        answer
    }

    fn forget(&self, used: &Connecting) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| current.ptr_eq(used)) {
            *current = None;
        }
    }
}

fn needs_another_connection(error: &RedisError) -> bool {
    let is_replica = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
    // The host of a master that failed over may have vanished without closing its connections.
    is_replica || error.is_timeout() || error.is_unrecoverable_error()
}
