//! The write tier: turns commands into events in the log.
//!
//! A command comes in over [`http`], goes by [`dispatch`] to the [`engine`] that owns its partition (in another
//! process by [`link`]), is decided by [`partition`] on the state in memory, and is answered when the log has it.
//!
//! Invariant: only this service writes the log, and in one partition only one instance's records count. Safety
//! is in the log alone; which instance wants which partition is a hint.
//!
//! Invariant: an answer is final. What may have been written is never called failed.
//!
//! Absent on purpose: a database in the hot path, locks around state, retries inside the service.

pub mod config;
mod metrics;
mod http;
mod dispatch;
mod owners;
mod link;
mod engine;
pub mod partition;
pub mod kafka;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chassis::admin::AdminServer;
use chassis::http::Limits;
use chassis::kafka::KafkaSettings;
use chassis::readiness::{Condition, Readiness};
use chassis::shutdown::{Shutdown, Tasks};
use chassis::telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

pub use config::Config;
use dispatch::{Dispatcher, Mailbox};
use engine::{Engine, Kafka, Status};
use http::{AppState, Log};
use kafka::producer::{Producers, Reports};
use kafka::reader::LogReader;
use kafka::topic::{self, TopicSettings};
use link::Links;
use metrics::Metrics;
use owners::Owners;
use partition::{Partition, Role};

/// Threads that replay partitions at start and look in doubt.
const REPLAY_THREADS: usize = 2;
const KAFKA_RETRY: Duration = Duration::from_millis(250);

/// A service that is bound and serves nothing yet.
pub struct App {
    config: Config,
    http: TcpListener,
    internal: TcpListener,
    admin: AdminServer,
    readiness: Readiness,
    kafka_ready: Condition,
    partitions_ready: Condition,
    metrics: Arc<Metrics>,
}

impl App {
    /// Binds the listeners. Kafka need not be there yet.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let telemetry = Telemetry::new("command-api")?;
        let metrics = Arc::new(Metrics::new(&telemetry));
        let readiness = Readiness::new();
        let (kafka_ready, partitions_ready) = (readiness.condition("kafka"), readiness.condition("partitions"));
        let http = bind(config.http_addr).await?;
        let internal = bind(config.internal_addr).await?;
        let admin = AdminServer::bind(config.admin_addr, "command-api", readiness.clone(), &telemetry)?;
        Ok(Self { config, http, internal, admin, readiness, kafka_ready, partitions_ready, metrics })
    }

    pub fn http_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.http.local_addr()?)
    }

    pub fn internal_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.internal.local_addr()?)
    }

    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Serves until shutdown: then answers what it took, lets go of its partitions and returns.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let (config, kafka_ready) = (self.config, self.kafka_ready);
        tracing::info!(http.addr = %self.http.local_addr()?, internal.addr = %self.internal.local_addr()?, admin.addr = %self.admin.local_addr(), "listening");
        let internal_url = config.internal_url.clone().unwrap_or(format!("http://{}", self.internal.local_addr()?));
        let admin = self.admin.serve(shutdown.clone())?;
        let (log_sender, log) = watch::channel(None);
        let state = AppState { log, metrics: self.metrics.clone(), service_token: config.service_token.clone() };
        let limits = Limits::new(config.grace);
        let mut servers = Tasks::new();
        servers.spawn("http", serve(self.http, http::public(state.clone()), limits, shutdown.clone()));
        servers.spawn("internal", serve(self.internal, http::internal(state), limits, shutdown.clone()));

        let Some(partitions) = count_partitions(&config, &kafka_ready, &shutdown).await? else {
            servers.drain(config.grace).await?;
            admin.stop().await;
            return Ok(());
        };
        let owned = Owned::start(&config, partitions, internal_url, self.metrics)?;
        servers.spawn(
            "log id",
            learn_log_id(owned.log_reader, owned.dispatcher, log_sender, kafka_ready, shutdown.clone()),
        );
        servers.spawn("readiness", watch_roles(owned.statuses, self.partitions_ready, shutdown.clone()));

        let mut engines = owned.engines;
        tokio::select! {
            () = shutdown.requested() => {}
            Some((name, result)) = engines.ended() => {
                shutdown.trigger();
                result.with_context(|| format!("the task {name:?} ended"))?;
            }
        }
        let drained = servers.drain(config.grace).await;
        owned.shutdown.trigger();
        let settled = engines.drain(config.grace).await;
        let producers = owned.producers;
        // Flushing and dropping a Kafka client block.
        tokio::task::spawn_blocking(move || {
            producers.flush(config.grace);
            drop(producers);
        })
        .await?;
        admin.stop().await;
        drained?;
        settled?;
        Ok(())
    }
}

/// The engines of this instance's share, and what they stand on.
struct Owned {
    producers: Arc<Producers>,
    /// Reads single records, beside the replays.
    log_reader: LogReader,
    dispatcher: Arc<Dispatcher>,
    engines: Tasks,
    statuses: Vec<watch::Receiver<Status>>,
    /// Of the engines, which end after the servers.
    shutdown: Shutdown,
}

impl Owned {
    fn start(config: &Config, partitions: u32, internal_url: String, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let (producers, reports) = Producers::new(&config.kafka, &config.topic, partitions, config.producers)?;
        let producers = Arc::new(producers);
        let replay = LogReader::start(&config.kafka, &config.topic, REPLAY_THREADS)?;
        let log_reader = LogReader::start(&config.kafka, &config.topic, 1)?;
        let shutdown = Shutdown::new();
        let mut engines = Tasks::new();
        let mut statuses = Vec::new();
        let mut mailboxes = Vec::new();
        for (partition, reports) in (0..partitions).zip(reports) {
            if !config.share.holds(partition) {
                mailboxes.push(None);
                continue;
            }
            let kafka = Kafka {
                partition,
                producers: producers.clone(),
                reader: replay.clone(),
                metrics: metrics.clone(),
                reading: None,
            };
            let machine = Partition::new(partition, internal_url.clone(), config.window);
            let (mailbox, status, engine) = engine(machine, reports, kafka);
            mailboxes.push(Some(mailbox));
            statuses.push(status);
            engines.spawn("engine", engine.run(shutdown.clone()));
        }
        let owners = Owners::new(log_reader.clone(), partitions);
        let links = Links::new(config.service_token.clone());
        let dispatcher = Arc::new(Dispatcher::new(mailboxes, owners, links, config.window, metrics));
        Ok(Self { producers, log_reader, dispatcher, engines, statuses, shutdown })
    }
}

/// Makes the topic of the log; harmless where it exists.
pub async fn create_topic((kafka, settings): &(KafkaSettings, TopicSettings)) -> anyhow::Result<()> {
    topic::create(kafka, settings).await
}

fn engine(
    machine: Partition<dispatch::Reply>,
    reports: Reports,
    kafka: Kafka,
) -> (Mailbox, watch::Receiver<Status>, Engine) {
    let (mailbox, waiting) = mpsc::channel(engine::MAX_MAILBOX);
    let (status, watching) = watch::channel(Status::Role(Role::Idle));
    (mailbox, watching, Engine { machine, mailbox: waiting, reports, status, kafka })
}

async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("listen on {addr}"))
}

async fn serve(listener: TcpListener, router: axum::Router, limits: Limits, shutdown: Shutdown) {
    let served = chassis::http::serve(listener, router, limits, shutdown).await;
    if served.cut > 0 {
        tracing::warn!(connections = served.cut, "connections were cut when the grace was over");
    }
}

/// Waits for Kafka and the topic; `None`: told to stop before.
async fn count_partitions(config: &Config, kafka: &Condition, shutdown: &Shutdown) -> anyhow::Result<Option<u32>> {
    while !shutdown.is_requested() {
        let (settings, topic) = (config.kafka.clone(), config.topic.clone());
        if let Some(count) = tokio::task::spawn_blocking(move || settings.partitions(&topic)).await?? {
            return Ok(Some(count));
        }
        kafka.waiting(format!("no topic {:?} at {}", config.topic, config.kafka.brokers));
        tokio::select! {
            () = tokio::time::sleep(KAFKA_RETRY) => {}
            () = shutdown.requested() => {}
        }
    }
    Ok(None)
}

/// The log's name is in the first record of partition 0, which its first owner writes.
async fn learn_log_id(
    reader: LogReader,
    dispatcher: Arc<Dispatcher>,
    log: watch::Sender<Option<Log>>,
    kafka: Condition,
    shutdown: Shutdown,
) {
    kafka.waiting("the log has no first claim yet");
    while !shutdown.is_requested() {
        if let Some(id) = owners::log_id(&reader).await {
            log.send_replace(Some(Log { id, dispatcher }));
            kafka.ready();
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(KAFKA_RETRY) => {}
            () = shutdown.requested() => {}
        }
    }
}

/// Ready when this instance owns its whole share.
async fn watch_roles(mut statuses: Vec<watch::Receiver<Status>>, ready: Condition, shutdown: Shutdown) {
    while !shutdown.is_requested() {
        let now: Vec<Status> = statuses.iter_mut().map(|status| status.borrow_and_update().clone()).collect();
        let halted = now.iter().find_map(|status| match status {
            Status::Halted(reason) => Some(reason),
            Status::Role(_) => None,
        });
        let owned = now.iter().filter(|status| **status == Status::Role(Role::Owner)).count();
        match halted {
            Some(reason) => ready.waiting(format!("halted: {reason}")),
            None if owned < now.len() => ready.waiting(format!("owns {owned} of {} partitions", now.len())),
            None => ready.ready(),
        }
        let changed = futures_util::future::select_all(statuses.iter_mut().map(|status| Box::pin(status.changed())));
        tokio::select! {
            (result, ..) = changed => if result.is_err() { return },
            () = shutdown.requested() => {}
        }
    }
}
