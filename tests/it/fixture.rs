//! Fixture of every test: a shop with its own topic, database and Redis prefix on shared servers.

mod crowd;
mod http;
mod http2;
mod load;
mod log;
mod process;
mod proxy;
mod service;
mod tripwire;
mod wire;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use chassis::env::Env;
use chassis::kafka::KafkaSettings;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, AsyncTypedCommands as _};
use schemas::aggregate::{AggregateType, type_name};
use schemas::cache::{Keys, Shown};
use schemas::feeds::StoredView;
use tokio::sync::OnceCell;
use tokio_postgres::NoTls;
use uuid::Uuid;

pub(crate) use crowd::{Crowd, crowd_size};
pub(crate) use http::{Answer, Client, batch_line};
pub(crate) use http2::by_http2;
pub(crate) use load::{Load, prove};
pub(crate) use log::{append, append_all, append_old, append_values, read_log, read_log_of, read_values};
pub(crate) use process::{CommandProcess, Program, ProjectorProcess, QueryProcess};
pub(crate) use proxy::Proxy;
pub(crate) use service::{Mortal, Service};
pub(crate) use tripwire::{Heard, Step, Tripwire};
pub(crate) use wire::{Cut, Wire};

/// Upper bound on every wait, longer than any operation that works takes on a busy machine: Kafka reassigns a dead
/// consumer's partitions after six seconds, a lease ends after ten, and a test may go through several of each.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const SERVICE_TOKEN: &str = "token-of-the-tests";

/// Template database with all tables and no rows. Each test gets a copy, because copying takes less time than
/// migrating.
static TABLES: OnceCell<String> = OnceCell::const_new();

/// A deployment with its own topic, database and Redis prefix. Its server addresses may be those of proxies.
#[derive(Clone)]
pub(crate) struct Shop {
    pub(crate) brokers: String,
    pub(crate) postgres_url: String,
    pub(crate) redis_url: String,
    pub(crate) topic: String,
    pub(crate) prefix: String,
    pub(crate) partitions: u32,
    pub(crate) has_tables: bool,
}

impl Shop {
    /// Creates the topic only; [`Shop::with_views`] also creates a database.
    pub(crate) async fn new(partitions: u32) -> Self {
        let name = format!("it_{}", Uuid::new_v4().simple());
        let shop = Self {
            brokers: server("TEST_KAFKA_BROKERS"),
            postgres_url: server("TEST_POSTGRES_URL"),
            redis_url: server("TEST_REDIS_URL"),
            topic: name.clone(),
            prefix: name,
            partitions,
            has_tables: false,
        };
        let env = shop.env([("EVENTS_PARTITIONS", partitions.to_string())]);
        let kafka = KafkaSettings::from_env(&env).unwrap();
        command_api::create_topic(&kafka, &command_api::config::topic(&env).unwrap()).await.unwrap();
        shop
    }

    pub(crate) async fn with_views(partitions: u32) -> Self {
        let tables = TABLES.get_or_init(async || {
            let name = format!("it_{}", Uuid::new_v4().simple());
            sql(&server("TEST_POSTGRES_URL"), &format!("CREATE DATABASE {name}")).await;
            projector::migrate(&url_of(&name).as_str().into()).await.unwrap();
            name
        });
        Self::with_database(partitions, tables.await).await
    }

    pub(crate) async fn with_empty_database(partitions: u32) -> Self {
        Self::with_database(partitions, "template1").await
    }

    /// Creates a database as a copy of `template`.
    async fn with_database(partitions: u32, template: &str) -> Self {
        let mut shop = Self::new(partitions).await;
        shop.sql(&format!("CREATE DATABASE {} TEMPLATE {template}", shop.topic)).await;
        shop.postgres_url = url_of(&shop.topic);
        shop.has_tables = true;
        shop
    }

    pub(crate) async fn redis(&self) -> MultiplexedConnection {
        connect_to_redis(&self.redis_url).await.unwrap()
    }

    /// Returns the name of an aggregate's row in Redis.
    pub(crate) async fn row_in_redis(&self, aggregate: AggregateType, id: &str) -> String {
        let (keys, view) = (Keys::new(&self.prefix), StoredView::named(type_name(aggregate)).unwrap());
        let partition = schemas::aggregate::partition(aggregate, id, self.partitions);
        let shown = self.redis().await.get(keys.shown(view.name(), partition)).await.unwrap().unwrap();
        keys.row(partition, Shown::parse(&shown).unwrap().making.incarnation, view, id)
    }

    /// Returns the settings of a service of this shop, which listens on ports that the system assigns.
    pub(crate) fn env(&self, more: impl IntoIterator<Item = (&'static str, String)>) -> Env {
        let common = [
            ("KAFKA_BROKERS", self.brokers.clone()),
            ("EVENTS_TOPIC", self.topic.clone()),
            ("POSTGRES_URL", self.postgres_url.clone()),
            ("REDIS_URL", self.redis_url.clone()),
            ("REDIS_PREFIX", self.prefix.clone()),
            ("SERVICE_TOKEN", SERVICE_TOKEN.to_owned()),
            ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
            ("INTERNAL_ADDR", "127.0.0.1:0".to_owned()),
            ("ADMIN_ADDR", "127.0.0.1:0".to_owned()),
            ("SHUTDOWN_GRACE_MS", "5000".to_owned()),
        ];
        common.into_iter().chain(more).collect()
    }

    /// Returns the settings of a command-api. Without tables it keeps everything in memory.
    pub(crate) fn write_env(&self, more: impl IntoIterator<Item = (&'static str, String)>) -> Env {
        let without = (!self.has_tables).then(|| ("POSTGRES_URL", String::new()));
        self.env(without.into_iter().chain(more))
    }

    /// Starts a command-api that owns every partition and waits until it is ready.
    pub(crate) async fn command_api(&self) -> Service {
        self.command_api_for(&format!("0-{}", self.partitions - 1)).await
    }

    /// Starts a command-api that owns the partitions of `share` and waits until it is ready.
    pub(crate) async fn command_api_for(&self, share: &str) -> Service {
        let service = self.start_command_api(share).await;
        service.wait_ready().await;
        service
    }

    /// Starts a command-api that owns the partitions that the consumer group assigns to it.
    pub(crate) async fn member(&self) -> Service {
        let service = Service::command_api(&self.write_env([])).await;
        service.wait_ready().await;
        service
    }

    /// Starts a command-api that owns every partition and has 1 MiB for the states of all aggregates.
    pub(crate) async fn small_command_api(&self) -> Service {
        let share = format!("0-{}", self.partitions - 1);
        let env = self.write_env([("PARTITIONS", share), ("STATE_MAX_MIB", "1".to_owned())]);
        let service = Service::command_api(&env).await;
        service.wait_ready().await;
        service
    }

    /// Starts a command-api that its peers reach through a proxy.
    pub(crate) async fn behind_a_proxy(
        &self,
        more: impl IntoIterator<Item = (&'static str, String)>,
    ) -> (Arc<Proxy>, Service) {
        let internal = Proxy::to("127.0.0.1:0").await;
        let link = Proxy::to(&internal.addr.to_string()).await;
        link.restore().await;
        let addresses =
            [("INTERNAL_ADDR", internal.addr.to_string()), ("INTERNAL_URL", format!("http://{}", link.addr))];
        let env = self.write_env(addresses.into_iter().chain(more));
        let service = Service::command_api(&env).await;
        service.wait_ready().await;
        (link, service)
    }

    pub(crate) async fn start_command_api(&self, share: &str) -> Service {
        Service::command_api(&self.write_env([("PARTITIONS", share.to_owned())])).await
    }

    pub(crate) async fn projector(&self) -> Service {
        let service = self.start_projector();
        service.wait_ready().await;
        service
    }

    pub(crate) fn start_projector(&self) -> Service {
        Service::projector(&self.env([]))
    }

    /// Starts a projector that folds these views only.
    pub(crate) fn projector_of(&self, views: &str) -> Service {
        Service::projector(&self.env([("PROJECTOR_VIEWS", views.to_owned())]))
    }

    /// Starts a reactor, that is a projector that folds no views, and waits until it is ready.
    pub(crate) async fn reactor(&self, command_api: &Service, payment_window_secs: u32) -> Service {
        let service = Service::projector(&self.reactor_env(&command_api.internal_addr(), payment_window_secs));
        service.wait_ready().await;
        service
    }

    /// Returns the settings of a reactor; `commands` is the address of a command-api's internal listener.
    pub(crate) fn reactor_env(&self, commands: &str, payment_window_secs: u32) -> Env {
        self.env([
            ("PROJECTOR_VIEWS", "none".to_owned()),
            ("REACTOR_COMMAND_URLS", format!("http://{commands}")),
            ("PAYMENT_WINDOW_SECS", payment_window_secs.to_string()),
        ])
    }

    pub(crate) async fn query_api(&self) -> Service {
        let service = self.start_query_api().await;
        service.wait_ready().await;
        service
    }

    pub(crate) async fn start_query_api(&self) -> Service {
        Service::query_api(&self.env([])).await
    }

    /// Starts a query-api with additional settings.
    pub(crate) async fn query_api_with(&self, more: impl IntoIterator<Item = (&'static str, String)>) -> Service {
        let service = Service::query_api(&self.env(more)).await;
        service.wait_ready().await;
        service
    }

    /// Runs a statement and returns the first column of its first row, a number or null.
    pub(crate) async fn sql(&self, statement: &str) -> Option<i64> {
        sql(&self.postgres_url, statement).await
    }
}

/// Runs a statement on any database, like [`Shop::sql`].
pub(crate) async fn sql(url: &str, statement: &str) -> Option<i64> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let rows = client.query(statement, &[]).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
    rows.first().and_then(|row| row.get(0))
}

fn url_of(database: &str) -> String {
    let url = server("TEST_POSTGRES_URL");
    let (server, _) = url.rsplit_once('/').expect("the URL ends with a database name");
    format!("{server}/{database}")
}

/// Connects with [`DEADLINE`], because the client's default of half a second is too short on a busy machine.
pub(crate) async fn connect_to_redis(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    let patient =
        AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE)).set_response_timeout(Some(DEADLINE));
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&patient).await
}

/// Returns the address of a server, from a variable that `cargo stack test` sets.
pub(crate) fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run the tests with `cargo stack test`"))
}

/// Returns an address on which nothing listens and that no other process is assigned: its port is outside the range
/// from which the system assigns ports.
pub(crate) fn free_addr() -> SocketAddr {
    /// Ports above those of development stacks and below Linux's ephemeral range.
    const PORTS: Range<u16> = 24_000..32_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        // The process id makes a concurrent run of the tests begin elsewhere.
        let next = u32::from(NEXT.fetch_add(1, Ordering::Relaxed)) + std::process::id();
        let port = PORTS.start + (next % u32::from(PORTS.end - PORTS.start)) as u16;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if std::net::TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}

/// Sleeps between two attempts.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Retries until `attempt` returns a value; `what` names the awaited condition in the panic message.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            pause().await;
        }
    };
    tokio::time::timeout(DEADLINE, tries).await.unwrap_or_else(|_| panic!("waited for {DEADLINE:?}: {what}"))
}
