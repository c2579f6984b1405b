//! The connection to Redis: to one server, or to a cluster of them.

mod pipelines;
mod place;

use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, PubSubStream};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, ErrorKind, FromRedisValue as _, Pipeline, RedisError, RedisFuture, RedisResult, Value};

use crate::env::Secret;
pub use pipelines::Pipelines;
use place::Place;

/// Redis answers in well under a millisecond: whoever waits longer is better served by Postgres.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);

/// For one attempt to connect, the handshake included.
const CONNECTION_TIMEOUT: Duration = Duration::from_millis(500);

/// Commands wait for the reconnection under way, with all of its retries: more than one would turn Redis's absence into
/// slow answers. The next command starts the next attempt, so that trying never ends.
const RETRIES: usize = 1;

/// The pause before that retry is between one and two times this (jitter): while Redis is away, about ten to twenty
/// rounds of attempts a second, however many commands ask for it.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Of a command in a cluster: it follows keys that have moved, and waits for those that are moving.
const CLUSTER_RETRIES: u32 = 4;
const CLUSTER_RETRY_MS: (u64, u64) = (10, 80);

#[derive(Debug, thiserror::Error)]
pub enum RedisSetupError {
    #[error("the Redis URL cannot be used")]
    Url(#[source] RedisError),
    #[error("the Redis connection cannot be set up")]
    SetUp(#[source] RedisError),
}

/// A connection that is shared by its clones, opened by the first command, and opened anew when lost.
///
/// A command fails after 0.5 s without an answer; without a connection, after 0.1 s where Redis's host refuses, and
/// after 1.1 s where nothing answers; in a cluster after 0.5 s at the latest. A command that failed this way may have
/// been carried out.
#[derive(Clone)]
pub enum Connection {
    Server(ConnectionManager),
    /// Keys are asked of the masters that have them, and never of replicas.
    Cluster(ClusterConnection),
}

/// Connects to the server that the URL names, or to a cluster: `redis-cluster://host:port?node=host:port&…` names any
/// of its nodes, which tell the others.
///
/// # Errors
/// [`RedisSetupError`] where the URL is malformed. A server that is not there shows at the first command.
///
/// # Panics
/// Outside a tokio runtime.
pub fn connect(url: &Secret) -> Result<Connection, RedisSetupError> {
    Place::parse(url).map_err(RedisSetupError::Url)?.connect().map_err(RedisSetupError::SetUp)
}

impl Place {
    fn connect(&self) -> RedisResult<Connection> {
        match self {
            Self::Server(client) => {
                let config = ConnectionManagerConfig::new()
                    .set_response_timeout(Some(RESPONSE_TIMEOUT))
                    .set_connection_timeout(Some(CONNECTION_TIMEOUT))
                    .set_number_of_retries(RETRIES)
                    .set_min_delay(RETRY_DELAY)
                    .set_max_delay(RETRY_DELAY);
                ConnectionManager::new_lazy_with_config(client.clone(), config).map(Connection::Server)
            }
            Self::Cluster(nodes) => {
                let nodes = nodes.iter().map(|node| node.get_connection_info().clone());
                let (min_wait, max_wait) = CLUSTER_RETRY_MS;
                let client = redis::cluster::ClusterClientBuilder::new(nodes)
                    .response_timeout(RESPONSE_TIMEOUT)
                    .connection_timeout(CONNECTION_TIMEOUT)
                    .retries(CLUSTER_RETRIES)
                    .min_retry_wait(min_wait)
                    .max_retry_wait(max_wait)
                    .build()?;
                let connection = client.get_pending_async_connection_with_config(redis::cluster::ClusterConfig::new());
                Ok(Connection::Cluster(connection))
            }
        }
    }
}

impl Connection {
    /// Tells whether some keys may be away while others are not.
    pub fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Returns the answer of each server that takes writes, by its address; of one server alone the address is empty.
    ///
    /// # Errors
    /// [`RedisError`] where one of them does not answer.
    pub async fn ask_masters(&mut self, command: Cmd) -> RedisResult<Vec<(String, Value)>> {
        match self {
            Self::Server(connection) => Ok(vec![(String::new(), command.query_async(connection).await?)]),
            Self::Cluster(connection) => {
                use redis::cluster_routing::MultipleNodeRoutingInfo::AllMasters;
                let answers = connection.route_command(command, RoutingInfo::MultiNode((AllMasters, None))).await?;
                Ok(Vec::<(String, Value)>::from_redis_value(answers)?)
            }
        }
    }

    /// Asks one server, by the address that [`Self::ask_masters`] gave.
    ///
    /// # Errors
    /// [`RedisError`] where it does not answer, or is none of the cluster any more.
    pub async fn ask(&mut self, address: &str, command: Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => {
                let parsed =
                    address.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
                let (host, port) = parsed.ok_or((ErrorKind::Client, "no address of a node"))?;
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
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// Subscribes to channels. Every node of a cluster tells what was published at any of them.
#[derive(Clone)]
pub struct Subscriber {
    nodes: Vec<redis::Client>,
    next: usize,
}

impl Subscriber {
    /// # Errors
    /// [`RedisSetupError`] where the URL is malformed.
    pub fn new(url: &Secret) -> Result<Self, RedisSetupError> {
        let nodes = match Place::parse(url).map_err(RedisSetupError::Url)? {
            Place::Server(client) => vec![client],
            Place::Cluster(nodes) => nodes,
        };
        Ok(Self { nodes, next: 0 })
    }

    /// Returns the messages from now on, until the connection is lost; each call asks the next node that the URL names.
    ///
    /// # Errors
    /// [`RedisError`] where the node does not answer within half a second.
    pub async fn subscribe(&mut self, channel: &str) -> RedisResult<PubSubStream> {
        let node = &self.nodes[self.next % self.nodes.len()];
        self.next = self.next.wrapping_add(1);
        let subscribed = async {
            let mut subscription = node.get_async_pubsub().await?;
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
        for url in ["redis://127.0.0.1:1/", "redis-cluster://127.0.0.1:1?node=127.0.0.1:2"] {
            let mut connection = connect(&Secret::from(url)).unwrap();
            let begun = Instant::now();
            for _ in 0..2 {
                redis::cmd("GET").arg("a").query_async::<String>(&mut connection).await.unwrap_err();
            }
            assert!(begun.elapsed() < Duration::from_secs(3), "{url}: {:?}", begun.elapsed());
        }
    }

    #[test]
    fn answers_of_masters_are_told_by_their_addresses() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let answers = Value::Map(vec![(text("a:1"), Value::Okay), (text("b:2"), text("role:master"))]);
        let answers = Vec::<(String, Value)>::from_redis_value(answers).unwrap();
        assert_eq!(answers, [("a:1".to_owned(), Value::Okay), ("b:2".to_owned(), text("role:master"))]);
    }

    #[tokio::test]
    async fn an_error_does_not_show_the_url() {
        for url in ["http://me:hunter2@host/", "redis-cluster://me:hunter2@host:x"] {
            let Err(error) = connect(&Secret::from(url)) else { panic!("{url} is no URL of Redis") };
            assert!(!format!("{error:?} {error}").contains("hunter2"));
        }
    }
}
