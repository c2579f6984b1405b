#![doc = include_str!("../README.md")]
//!
//! # Invariants
//!
//! Invariant: only this service writes the log, and within a partition only one instance's records count. Safety rests
//! on the log alone; the assignment of partitions to instances is a hint, provided by [`chassis::kafka::group`].
//!
//! Invariant: answers are final. A command that may have been written is never reported as failed.
//!
//! Absent on purpose: a database in the hot path, locks around state, retries after version conflicts.

pub mod config;
mod metrics;
mod http;
mod request;
mod dispatcher;
mod batch_order;
mod clock;
mod directory;
mod outage;
mod peers;
mod loader;
mod memory_budget;
mod handover;
mod engines;
mod mailbox;
mod engine;
mod exceptions;
mod report;
pub mod grow;
pub mod archive;
pub mod partition;
pub mod kafka;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chassis::admin::AdminServer;
use chassis::exit::Misuse;
use chassis::http::{Limits, serve};
use chassis::kafka::KafkaSettings;
use chassis::kafka::group::Assignment;
use chassis::kafka::topic::TopicFacts;
use chassis::listeners::{Listener, Listeners};
use chassis::readiness::{Condition, Readiness};
use chassis::shutdown::{Shutdown, Tasks};
use chassis::telemetry::Telemetry;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use schemas::topic::{LogTopic, coordination_topic, coordination_topic_differences};
use tokio::sync::watch;

use clock::Clock;
pub use config::Config;
use config::Share;
use dispatcher::Dispatcher;
use engines::Engines;
pub use exceptions::{except, make_key};
use http::{HttpState, Log, StaffRule};
use kafka::reader::LogReader;
use kafka::topic;
use mailbox::Status;
use metrics::Metrics;
use partition::Role;
use report::Watched;

const KAFKA_RETRY: Duration = Duration::from_millis(250);

/// The service with its listeners bound, not serving yet.
pub struct App {
    config: Config,
    http: Listener,
    internal: Listener,
    /// Scheme of the internal listener's URL.
    scheme: &'static str,
    admin: AdminServer,
    readiness: Readiness,
    kafka_ready: Condition,
    partitions_ready: Condition,
    clock_ready: Condition,
    metrics: Arc<Metrics>,
}

impl App {
    /// Binds the listeners. Kafka need not be reachable yet.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let telemetry = Telemetry::new("command-api")?;
        let metrics = Arc::new(Metrics::new(&telemetry));
        let readiness = Readiness::new();
        let (kafka_ready, partitions_ready) = (readiness.condition("kafka"), readiness.condition("partitions"));
        let clock_ready = readiness.condition("clock");
        let listeners = Listeners::new(&config.listeners, &telemetry)?;
        let (http, internal) = (listeners.bind(config.http_addr)?, listeners.bind(config.internal_addr)?);
        let scheme = listeners.scheme();
        let admin = AdminServer::bind(&listeners, config.admin_addr, "command-api", readiness.clone(), &telemetry)?;
        Ok(Self {
            config,
            http,
            internal,
            scheme,
            admin,
            readiness,
            kafka_ready,
            partitions_ready,
            clock_ready,
            metrics,
        })
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

    /// Serves until shutdown, then answers the commands that it accepted, releases its partitions and returns.
    ///
    /// The future is boxed so that this crate compiles it, once, rather than each program that polls it.
    pub fn run(self, shutdown: Shutdown) -> BoxFuture<'static, anyhow::Result<()>> {
        self.serve(shutdown).boxed()
    }

    async fn serve(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let (config, kafka_ready) = (self.config, self.kafka_ready);
        tracing::info!(http.addr = %self.http.local_addr()?, internal.addr = %self.internal.local_addr()?, admin.addr = %self.admin.local_addr(), "listening");
        let watched = Arc::new(Watched::default());
        let internal_url = match config.internal_url.clone() {
            Some(url) => url,
            None => format!("{}://{}", self.scheme, self.internal.local_addr()?).parse()?,
        };
        let (log_sender, log) = watch::channel(None);
        let mut servers = Tasks::new();
        watched.report(&config, &self.admin, self.readiness, &mut servers, &shutdown)?;
        let admin = self.admin.merge(http::admin::routes(log.clone())).serve(shutdown.clone())?;
        let state =
            |staff| Arc::new(HttpState::new(log.clone(), self.metrics.clone(), config.service_token.clone(), staff));
        let public = state(StaffRule::of(self.http.local_addr()?, config.staff_token.clone()));
        let border = http::border(config.cors_origins.clone(), public.clone());
        let limits = Limits::new(config.grace);
        let servers_shutdown = Shutdown::new();
        servers.spawn("http", serve(self.http, http::public(public), border, limits, servers_shutdown.clone()));
        servers.spawn(
            "internal",
            serve(
                self.internal,
                http::internal(state(StaffRule::Open)),
                http::internal_border(),
                limits,
                servers_shutdown.clone(),
            ),
        );

        let Some((partitions, log_reader)) = await_log(&config, &kafka_ready, &shutdown).await? else {
            servers_shutdown.trigger();
            servers.drain(config.grace).await?;
            admin.stop().await;
            return Ok(());
        };
        let (kafka, topic) = (&config.kafka, &config.topic);
        let (expected, told, also_told) = (topic.clone(), self.metrics.clone(), watched.clone());
        let judge = move |is: &TopicFacts| expected.differences(is.partitions, is.replication, |name| is.setting(name));
        let watch = kafka.clone().watch_topic(
            topic.name.clone(),
            judge,
            move |differs| {
                told.topic_differs(differs);
                also_told.topic_differs(differs);
            },
            shutdown.clone(),
        );
        servers.spawn("topic", watch);
        let (clock, watching) = Clock::start(kafka, topic, self.metrics.clone(), self.clock_ready, shutdown.clone())?;
        servers.spawn("clock", watching);
        let mut ownership = Engines::start(&config, partitions, log_reader, &internal_url, self.metrics, clock)?;
        let Engines { log_reader, dispatcher, mailboxes, statuses, assignment, .. } = &ownership;
        watched.engines_started(mailboxes);
        let learn = learn_log_id(log_reader.clone(), dispatcher.clone(), log_sender, kafka_ready, shutdown.clone());
        servers.spawn("log id", learn);
        let roles = watch_roles(statuses.clone(), assignment.clone(), self.partitions_ready, shutdown.clone());
        servers.spawn("readiness", roles);
        let ran = ownership.run(&shutdown).await;
        shutdown.trigger();
        // Other instances take over while this one still serves and forwards.
        ownership.hand_over().await;
        servers_shutdown.trigger();
        let drained = servers.drain(config.grace).await;
        let settled = ownership.end(config.grace).await;
        admin.stop().await;
        ran.and(settled)?;
        Ok(drained?)
    }
}

/// Creates the log's topics; existing ones are left unchanged.
pub async fn create_topic(kafka: &KafkaSettings, topic: &LogTopic) -> anyhow::Result<()> {
    topic::create(kafka, topic).await
}

/// Waits for the log's topics and checks that the log may be written, and with this number of partitions.
/// Returns that number and a reader of single records, or `None` if shutdown is requested first.
async fn await_log(
    config: &Config,
    kafka_ready: &Condition,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<(u32, LogReader)>> {
    let (kafka, topic) = (&config.kafka, &config.topic);
    let judge = |is: &TopicFacts| topic.differences(is.partitions, is.replication, |name| is.setting(name));
    let Some(partitions) = kafka.await_topic(&topic.name, judge, kafka_ready, shutdown).await? else { return Ok(None) };
    let reader = LogReader::start(kafka, &topic.name)?;
    tokio::select! {
        checked = directory::check_log(&reader, partitions) => checked.map_err(Misuse::new)?,
        () = shutdown.requested() => return Ok(None),
    }
    if config.share == Share::Assigned {
        let judge = |is: &TopicFacts| coordination_topic_differences(is.partitions, partitions);
        let met = kafka.await_topic(&coordination_topic(&topic.name), judge, kafka_ready, shutdown).await?;
        return Ok(met.map(|_| (partitions, reader)));
    }
    Ok(Some((partitions, reader)))
}

/// Waits for the log's id and publishes it. The id is in the first record of partition 0, which that partition's first
/// owner writes.
async fn learn_log_id(
    reader: LogReader,
    dispatcher: Arc<Dispatcher>,
    log: watch::Sender<Option<Log>>,
    kafka: Condition,
    shutdown: Shutdown,
) {
    kafka.waiting("the log has no first claim yet");
    while !shutdown.is_requested() {
        if let Some(id) = directory::log_id(&reader).await {
            log.send_replace(Some(Log { id, dispatcher }));
            kafka.ready();
            return;
        }
        shutdown.sleep(KAFKA_RETRY).await;
    }
}

/// Returns why an instance whose assigned partitions have these statuses is not ready. Halted partitions are left out
/// as long as there are others: other instances could not read them either.
fn what_lacks<'a>(assigned: impl Iterator<Item = &'a Status>) -> Option<String> {
    let (mut owned, mut all, mut halted, mut waits) = (0, 0, None, String::new());
    for status in assigned {
        match status {
            Status::Halted(reason) => halted = Some(reason),
            Status::Waits(_, what) => waits = format!("; {what}"),
            Status::Role(_) => {}
        }
        all += usize::from(status.role().is_some());
        owned += usize::from(status.role() == Some(Role::Owner));
    }
    match halted {
        Some(reason) if all == 0 => Some(format!("halted: {reason}")),
        _ if owned < all => Some(format!("owns {owned} of {all} readable partitions{waits}")),
        _ => None,
    }
}

/// Reports the instance as ready while it owns all readable partitions that are assigned to it.
async fn watch_roles(
    mut statuses: Vec<watch::Receiver<Status>>,
    mut assignment: watch::Receiver<Assignment>,
    ready: Condition,
    shutdown: Shutdown,
) {
    while !shutdown.is_requested() {
        let assigned = assignment.borrow_and_update().clone();
        let now: Vec<Status> = statuses.iter_mut().map(|status| status.borrow_and_update().clone()).collect();
        match assigned {
            None => ready.waiting("the group has not assigned partitions yet"),
            Some(assigned) => match what_lacks(assigned.iter().filter_map(|partition| now.get(*partition as usize))) {
                None => ready.ready(),
                Some(reason) => ready.waiting(reason),
            },
        }
        let changed = futures_util::future::select_all(statuses.iter_mut().map(|status| Box::pin(status.changed())));
        tokio::select! {
            (result, ..) = changed => if result.is_err() { return },
            Ok(()) = assignment.changed() => {}
            () = shutdown.requested() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halted_partition_takes_no_instance_out_that_serves_others() {
        let (owner, idle) = (Status::Role(Role::Owner), Status::Role(Role::Idle));
        let halted = Status::Halted("why".to_owned());
        for (assigned, ready) in [
            (&[][..], true),
            (&[&owner, &owner], true),
            (&[&owner, &idle], false),
            (&[&owner, &halted], true),
            (&[&idle, &halted], false),
            (&[&halted, &halted], false),
        ] {
            assert_eq!(what_lacks(assigned.iter().copied()).is_none(), ready, "{assigned:?}");
        }
    }
}
