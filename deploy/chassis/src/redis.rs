//! Connections to Redis: to a single server, to the master that sentinels name, or to a cluster.

mod pipelines;
mod place;
mod reconnecting;
mod settings;

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, PubSubStream};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{
    Client, Cmd, ConnectionInfo, ErrorKind, FromRedisValue as _, Pipeline, RedisError, RedisFuture, RedisResult,
    TlsCertificates, Value,
};

pub use pipelines::Pipelines;
use place::Place;
pub use reconnecting::Reconnecting;
use reconnecting::{Sentinels, Target};
use settings::Credentials;
pub use settings::RedisSettings;

/// Time limit for an answer. Redis answers in well under a millisecond, so after this a caller is better served by
/// Postgres.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Time limit for one connection attempt, including the handshake.
const CONNECTION_TIMEOUT: Duration = Duration::from_millis(500);

/// Retries of a connection attempt. Commands wait for the reconnection in progress with all its retries, so more than
/// one would turn an outage of Redis into slow answers. The next command starts the next attempt, so reconnecting never
/// stops.
const RETRIES: usize = 1;

/// Base of the pause before that retry, which is between one and two times this (jitter): while Redis is unavailable,
/// there are about ten to twenty rounds of attempts a second, however many commands need it.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Retries of a command in a cluster: they follow keys that have moved, and wait for keys that are moving.
const CLUSTER_RETRIES: u32 = 4;
const CLUSTER_RETRY_MS: (u64, u64) = (10, 80);

#[derive(Debug, thiserror::Error)]
pub enum RedisSetupError {
    #[error("invalid Redis URL")]
    Url(#[source] RedisError),
    #[error("the certificates in {} cannot be read", path.display())]
    Authorities { path: PathBuf, source: std::io::Error },
    #[error("setting up the Redis connection failed")]
    SetUp(#[source] RedisError),
}

/// A connection that is shared by its clones, opened by the first command, and reopened when lost.
///
/// A command fails after 0.5 s without an answer. Without a connection it fails after 0.1 s if Redis's host refuses,
/// and after 1.1 s if nothing answers; in a cluster after 0.5 s at the latest. A command that timed out may have been
/// executed.
#[derive(Clone)]
pub enum Connection {
    Server(ConnectionManager),
    /// One server whose password may change, or the one that the sentinels name.
    Reconnecting(Reconnecting),
    /// Commands go to the masters that hold the keys, never to replicas.
    Cluster(ClusterConnection),
}

/// Creates a connection to the servers that the settings name.
///
/// # Errors
/// [`RedisSetupError`] if the URL is malformed. An unreachable server becomes an error of the first command.
///
/// # Panics
/// Outside a tokio runtime.
pub fn connect(redis: &RedisSettings) -> Result<Connection, RedisSetupError> {
    Servers::new(redis)?.connect().map_err(RedisSetupError::SetUp)
}

/// The servers that the settings name, with the account there.
#[derive(Clone)]
enum Servers {
    Server(Client, Option<Credentials>),
    Sentinel(Sentinels),
    /// Some nodes of the cluster; never empty.
    Cluster(Vec<Client>, Option<Credentials>, Option<TlsCertificates>),
}

impl Servers {
    fn new(redis: &RedisSettings) -> Result<Self, RedisSetupError> {
        let place = redis.place()?;
        let (credentials, certificates) = (redis.credentials(&place), redis.certificates()?);
        let certificates = certificates.filter(|_| place.is_tls());
        let client = |info: ConnectionInfo| match &certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        };
        let servers = match place {
            Place::Server(info) => Self::Server(client(info).map_err(RedisSetupError::SetUp)?, credentials),
            Place::Cluster(nodes) => {
                let nodes = nodes.into_iter().map(client).collect::<Result<_, _>>().map_err(RedisSetupError::SetUp)?;
                Self::Cluster(nodes, credentials, certificates)
            }
            Place::Sentinel { sentinels: nodes, name, is_same_account } => {
                Self::Sentinel(Sentinels { nodes, name, is_same_account, credentials, certificates })
            }
        };
        Ok(servers)
    }

    fn connect(self) -> RedisResult<Connection> {
        match self {
            Self::Server(client, Some(credentials)) => {
                Ok(Connection::Reconnecting(Reconnecting::new(Target::Server(client, credentials))))
            }
            Self::Server(client, None) => {
                let config = ConnectionManagerConfig::new()
                    .set_response_timeout(Some(RESPONSE_TIMEOUT))
                    .set_connection_timeout(Some(CONNECTION_TIMEOUT))
                    .set_number_of_retries(RETRIES)
                    .set_min_delay(RETRY_DELAY)
                    .set_max_delay(RETRY_DELAY);
                ConnectionManager::new_lazy_with_config(client, config).map(Connection::Server)
            }
            Self::Sentinel(sentinels) => Ok(Connection::Reconnecting(Reconnecting::new(Target::Sentinels(sentinels)))),
            Self::Cluster(nodes, credentials, certificates) => {
                let nodes = nodes.iter().map(|node| node.get_connection_info().clone());
                let (min_wait, max_wait) = CLUSTER_RETRY_MS;
                let mut builder = redis::cluster::ClusterClientBuilder::new(nodes)
                    .response_timeout(RESPONSE_TIMEOUT)
                    .connection_timeout(CONNECTION_TIMEOUT)
                    .retries(CLUSTER_RETRIES)
                    .min_retry_wait(min_wait)
                    .max_retry_wait(max_wait);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates);
                }
                if let Some(credentials) = credentials {
                    builder = builder.set_credentials_provider(credentials);
                }
                let config = redis::cluster::ClusterConfig::new();
                Ok(Connection::Cluster(builder.build()?.get_pending_async_connection_with_config(config)))
            }
        }
    }

    /// Returns a client of the server that delivers messages: the master, or the next node at each turn.
    async fn messenger(&self, turn: usize) -> RedisResult<Client> {
        let (client, credentials) = match self {
            Self::Server(client, credentials) => (client, credentials),
            Self::Sentinel(sentinels) => return sentinels.master().await,
            Self::Cluster(nodes, credentials, _) => (&nodes[turn % nodes.len()], credentials),
        };
        match credentials {
            // The information contains the certificates.
            Some(credentials) => Client::open(credentials.apply(client.get_connection_info().clone())),
            None => Ok(client.clone()),
        }
    }
}

impl Connection {
    /// Returns whether this is a cluster, so that some keys may be available while others are not.
    pub fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Sends a command to every master and returns the answers by address; a single server has an empty address.
    ///
    /// # Errors
    /// [`RedisError`] if any of them does not answer.
    pub async fn ask_masters(&mut self, command: Cmd) -> RedisResult<Vec<(String, Value)>> {
        match self {
            Self::Server(_) | Self::Reconnecting(_) => Ok(vec![(String::new(), command.query_async(self).await?)]),
            Self::Cluster(connection) => {
                use redis::cluster_routing::MultipleNodeRoutingInfo::AllMasters;
                let answers = connection.route_command(command, RoutingInfo::MultiNode((AllMasters, None))).await?;
                Ok(Vec::<(String, Value)>::from_redis_value(answers)?)
            }
        }
    }

    /// Sends a command to one server, by an address that [`Self::ask_masters`] returned.
    ///
    /// # Errors
    /// [`RedisError`] if it does not answer, or no longer belongs to the cluster.
    pub async fn ask(&mut self, address: &str, command: Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(_) | Self::Reconnecting(_) => command.query_async(self).await,
            Self::Cluster(connection) => {
                let parsed =
                    address.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
                let (host, port) = parsed.ok_or((ErrorKind::Client, "not the address of a node"))?;
                let route = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
                connection.route_command(command, route).await?.extract_error()
            }
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(command),
            Self::Reconnecting(connection) => Box::pin(connection.command(command)),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Reconnecting(connection) => Box::pin(connection.commands(pipeline, offset, count)),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Reconnecting(connection) => connection.database(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// Subscribes to channels. Every node of a cluster delivers messages that were published at any of them.
#[derive(Clone)]
pub struct Subscriber {
    servers: Servers,
    next: usize,
}

impl Subscriber {
    /// Creates a subscriber without connecting.
    ///
    /// # Errors
    /// [`RedisSetupError`] if the URL is malformed.
    pub fn new(redis: &RedisSettings) -> Result<Self, RedisSetupError> {
        Ok(Self { servers: Servers::new(redis)?, next: 0 })
    }

    /// Returns the messages from now on, until the connection is lost. Each call connects to the next node in the URL.
    ///
    /// # Errors
    /// [`RedisError`] if the node does not answer within half a second.
    pub async fn subscribe(&mut self, channel: &str) -> RedisResult<PubSubStream> {
        let turn = self.next;
        self.next = turn.wrapping_add(1);
        let subscribed = async {
            let mut subscription = self.servers.messenger(turn).await?.get_async_pubsub().await?;
            subscription.subscribe(channel).await?;
            Ok(subscription.into_on_message())
        };
        tokio::time::timeout(RESPONSE_TIMEOUT, subscribed).await.map_err(|_| silent())?
    }
}

fn silent() -> RedisError {
    (ErrorKind::Io, "Redis did not answer in time").into()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_missing_server_fails_commands_quickly_and_not_the_start() {
        for url in [
            "redis://127.0.0.1:1/",
            "redis-cluster://127.0.0.1:1?node=127.0.0.1:2",
            "redis-sentinel://127.0.0.1:1/shop?node=127.0.0.1:2",
        ] {
            let mut connection = connect(&url.into()).unwrap();
            let begun = Instant::now();
            for _ in 0..2 {
                redis::cmd("GET").arg("a").query_async::<String>(&mut connection).await.unwrap_err();
            }
            assert!(begun.elapsed() < Duration::from_secs(3), "{url}: {:?}", begun.elapsed());
        }
    }

    #[test]
    fn answers_of_masters_are_listed_by_address() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let answers = Value::Map(vec![(text("a:1"), Value::Okay), (text("b:2"), text("role:master"))]);
        let answers = Vec::<(String, Value)>::from_redis_value(answers).unwrap();
        assert_eq!(answers, [("a:1".to_owned(), Value::Okay), ("b:2".to_owned(), text("role:master"))]);
    }

    #[tokio::test]
    async fn an_error_does_not_show_the_url() {
        for url in ["http://me:hunter2@host/", "redis-cluster://me:hunter2@host:x"] {
            let Err(error) = connect(&url.into()) else { panic!("{url} was accepted") };
            assert!(!format!("{error:?} {error}").contains("hunter2"));
        }
    }
}
