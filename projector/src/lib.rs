#![doc = include_str!("../README.md")]
//!
//! # Invariants
//!
//! Invariant: a view is the fold of the counted records, each once, in offset order. The checkpoints move by
//! compare-and-set in the transaction that writes the rows: that is the fence, and the assignment of partitions is only
//! a hint.
//!
//! Invariant: an unreadable record is never skipped unless an operator signed an exception for it. The projector halts
//! before it, in that partition alone, and reports the offset.
//!
//! Absent on purpose: offsets committed to Kafka; they could only disagree with the checkpoints.

pub mod config;
mod admin;
mod metrics;
mod report;
mod projector;
mod other_folds;
mod log_reader;
mod log_end;
mod stops;
mod share;
mod fold;
mod parked;
mod journal;
mod segments;
pub mod snapshots;
mod postgres;
mod redis;
mod reactor;
mod migrate;
pub mod settings;
pub mod audit;
pub mod rebuild;
pub mod recover;
#[doc(hidden)]
pub mod bench;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chassis::admin::AdminServer;
use chassis::kafka::group::{Group, Losses};
use chassis::kafka::topic::TopicFacts;
use chassis::listeners::Listeners;
use chassis::readiness::{Condition, Readiness};
use chassis::shutdown::{Shutdown, Tasks};
use chassis::telemetry::Telemetry;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use schemas::topic::{coordination_topic, coordination_topic_differences};
use tokio::sync::watch;

pub use config::Config;
pub use migrate::migrate;
pub use reactor::{begin, grown};

use log_end::LogEnd;
use metrics::Metrics;
use other_folds::Notice;
use projector::{CommitSize, Projector, Ready};
use reactor::deadlines::Deadlines;
use reactor::retries::Retries;
use reactor::unconfirmed::Unconfirmed;
use reactor::{CommandClient, PartitionQueues, Reactor, WeakQueues};
use redis::{Cache, fitness};
use report::Watched;
use stops::Stops;

/// Time limit for removing the instance's report at its end.
const REPORTING_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// A projector whose admin listener is bound and which does not fold yet.
pub struct App {
    config: Config,
    admin: AdminServer,
    readiness: Readiness,
    ready: Ready,
    reactor_ready: Condition,
    /// Set if this process reacts to events.
    commands: Option<CommandClient>,
    /// The reactor's queues, set once it has started.
    queues: Arc<OnceLock<WeakQueues>>,
    metrics: Arc<Metrics>,
}

impl App {
    /// Binds the admin listener. Kafka, Postgres and Redis need not be up yet.
    pub fn build(config: Config) -> anyhow::Result<Self> {
        let telemetry = Telemetry::new("projector")?;
        let metrics = Arc::new(Metrics::new(&telemetry));
        let readiness = Readiness::new();
        let ready = Ready {
            log: readiness.condition("kafka"),
            postgres: readiness.condition("postgres"),
            redis: readiness.condition("redis"),
            redis_settings: readiness.condition("redis-settings"),
        };
        let reactor_ready = readiness.condition("reactor");
        let commands = CommandClient::of(&config)?;
        let queues = Arc::default();
        let listeners = Listeners::new(&config.listeners, &telemetry)?;
        let admin = AdminServer::bind(&listeners, config.admin_addr, "projector", readiness.clone(), &telemetry)?
            .merge(admin::routes(&config, Arc::clone(&queues)));
        Ok(Self { config, admin, readiness, ready, reactor_ready, commands, queues, metrics })
    }

    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Folds the assigned partitions until shutdown, and then until other instances have them. A batch in flight is
    /// finished first.
    ///
    /// The future is boxed so that this crate compiles it, once, rather than each program that polls it.
    pub fn run(self, shutdown: Shutdown) -> BoxFuture<'static, anyhow::Result<()>> {
        self.serve(shutdown).boxed()
    }

    async fn serve(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { config, admin, readiness, ready, reactor_ready, commands, queues, metrics } = self;
        tracing::info!(admin.addr = %admin.local_addr(), "listening");
        let (watched, mut reporting) = (Arc::new(Watched::default()), Tasks::new());
        watched.report(&config, &admin, readiness, &mut reporting, &shutdown)?;
        let admin = admin.serve(shutdown.clone())?;
        let (kafka, topic) = (&config.kafka, &config.topic);
        let judge = |is: &TopicFacts| topic.differences(is.partitions, is.replication, |name| is.setting(name));
        let mut tasks = Tasks::new();
        // Requested once other instances have this one's partitions, so that the views never stand still.
        let end = Shutdown::new();
        tasks.spawn("measurements", metrics.postgres.clone().run(config.postgres.clone(), end.clone()));
        if let Some(partitions) = kafka.await_topic(&topic.name, judge, &ready.log, &shutdown).await? {
            let judge = |is: &TopicFacts| coordination_topic_differences(is.partitions, partitions);
            kafka.await_topic(&coordination_topic(&topic.name), judge, &ready.log, &shutdown).await?;
            settings::agree(&config, partitions, &ready.postgres, &shutdown).await?;
            let (expected, told, also_told) = (topic.clone(), metrics.clone(), watched.clone());
            let judge =
                move |is: &TopicFacts| expected.differences(is.partitions, is.replication, |name| is.setting(name));
            let tell = move |differs| {
                told.topic_differs(differs);
                also_told.topic_differs(differs);
            };
            tasks.spawn("topic", kafka.clone().watch_topic(topic.name.clone(), judge, tell, end.clone()));
            let to_commands =
                commands.map(|commands| PartitionQueues::start(commands, partitions, metrics.clone(), &mut tasks));
            // This is the only place that sets it, so it cannot fail.
            let _ = to_commands.as_ref().map(|to_commands| queues.set(to_commands.weak()));
            let mut runtime = Runtime { tasks: &mut tasks, watched: &watched, shutdown: &end };
            let reactors = start_reactor(&config, partitions, &metrics, to_commands, reactor_ready, &mut runtime)?;
            let grace = config.grace;
            let projectors = start_projector(config, partitions, metrics, ready, &mut runtime)?;
            tokio::select! {
                () = shutdown.requested() => {}
                Some((_, result)) = tasks.ended() => result?,
            }
            // Blocks.
            let groups = projectors.into_iter().chain(reactors);
            let handed_over = groups.map(|group| tokio::task::spawn_blocking(|| group.hand_over()));
            for handed_over in handed_over.collect::<Vec<_>>() {
                handed_over.await?;
            }
            end.trigger();
            tasks.drain(grace).await?;
        }
        reporting.drain(REPORTING_ENDS_WITHIN).await?;
        admin.stop().await;
        Ok(())
    }
}

/// The tasks of this process, and the request to end them.
struct Runtime<'a> {
    tasks: &'a mut Tasks,
    watched: &'a Arc<Watched>,
    shutdown: &'a Shutdown,
}

/// Starts folding. Returns `None` if this process is configured to fold nothing.
fn start_projector(
    config: Config,
    partitions: u32,
    metrics: Arc<Metrics>,
    ready: Ready,
    Runtime { tasks, watched, shutdown }: &mut Runtime<'_>,
) -> anyhow::Result<Option<Group>> {
    if config.feeds.is_empty() {
        [ready.log, ready.postgres, ready.redis, ready.redis_settings].iter().for_each(Condition::ready);
        return Ok(None);
    }
    let (sender, assignment) = watch::channel(None);
    let topic = &config.topic.name;
    let name = format!("{topic}.projectors.{}", config.feeds.names());
    let group = Group::join(&config.kafka, "projector", &name, &coordination_topic(topic), Losses::AtTheEnd, sender)?;
    let cache = Cache::connect(&config.redis, &config.redis_prefix)?;
    let (redis, keys) = cache.connection();
    let log_end = LogEnd::new(&config.kafka, topic, redis.clone(), keys)?;
    tasks.spawn("log-end", log_end.publish(assignment.clone(), shutdown.clone()));
    tasks.spawn("redis-settings", fitness::watch(redis, ready.redis_settings.clone(), shutdown.clone()));
    let notice = Notice::new(metrics.clone());
    let (cache_failure, failure) = (None, None);
    let (commit_size, stops) = (CommitSize::default(), Stops::new("views", metrics.clone(), watched.clone()));
    let projector = Projector {
        config,
        partitions,
        cache,
        metrics,
        ready,
        cache_failure,
        failure,
        notice,
        assignment,
        commit_size,
        stops,
    };
    tasks.spawn("projector", projector.run(shutdown.clone()));
    Ok(Some(group))
}

/// Starts the reactor. Returns `None` if this process does not react to events.
fn start_reactor(
    config: &Config,
    partitions: u32,
    metrics: &Arc<Metrics>,
    queues: Option<PartitionQueues>,
    ready: Condition,
    Runtime { tasks, watched, shutdown }: &mut Runtime<'_>,
) -> anyhow::Result<Option<Group>> {
    let Some(queues) = queues else {
        ready.ready();
        return Ok(None);
    };
    let (sender, assignment) = watch::channel(None);
    let topic = &config.topic.name;
    let group = Group::join(
        &config.kafka,
        "reactor",
        &format!("{topic}.reactors"),
        &coordination_topic(topic),
        Losses::AtTheEnd,
        sender,
    )?;
    let deadlines = Deadlines { postgres: config.postgres.clone(), queues: queues.clone(), metrics: metrics.clone() };
    let unconfirmed = Unconfirmed {
        postgres: config.postgres.clone(),
        queues: queues.clone(),
        within: config.confirm_within,
        payment_window: config.payment_window,
    };
    let payment_window = config.payment_window;
    let retries = Retries { postgres: config.postgres.clone(), queues: queues.clone(), payment_window };
    let (config, metrics) = (config.clone(), metrics.clone());
    let stops = Stops::new("reactor", metrics.clone(), watched.clone());
    let reactor = Reactor { config, partitions, queues, metrics, ready, assignment, stops };
    tasks.spawn("reactor", reactor.run(shutdown.clone()));
    tasks.spawn("deadlines", deadlines.fire(shutdown.clone()));
    tasks.spawn("unconfirmed", unconfirmed.run(shutdown.clone()));
    tasks.spawn("retries", retries.run(shutdown.clone()));
    Ok(Some(group))
}
