//! The bridge from the write side to the read side: folds the log into views in Postgres and Redis.
//!
//! One fetch and decode feeds all views; one transaction moves their rows and their checkpoints; Redis follows.
//!
//! Invariant: a view is what a fold of the counted records is, each once, in offset order. The checkpoints move by
//! compare-and-set in the transaction that writes the rows: that is the fence, and who is assigned what is only a
//! hint.
//!
//! Invariant: what cannot be read is never skipped. The projector halts at it and says where.
//!
//! Absent on purpose: offsets kept in Kafka; they could only disagree with the checkpoints.

pub mod config;
mod admin;
mod metrics;
mod projector;
mod log;
mod fold;
mod poison;
mod journal;
mod snapshots;
mod postgres;
mod redis;
mod migrate;
pub mod audit;
pub mod rebuild;

use std::net::SocketAddr;
use std::sync::Arc;

use chassis::admin::AdminServer;
use chassis::kafka::group::Group;
use chassis::kafka::topic::TopicFacts;
use chassis::readiness::Readiness;
use chassis::shutdown::{Shutdown, Tasks};
use chassis::telemetry::Telemetry;

use schemas::topic::meeting;
use tokio::sync::watch;

pub use config::Config;
pub use migrate::migrate;

use metrics::Metrics;
use projector::{Projector, Ready};
use redis::Cache;

/// A projector that is bound and folds nothing yet.
pub struct App {
    config: Config,
    admin: AdminServer,
    readiness: Readiness,
    ready: Ready,
    metrics: Arc<Metrics>,
}

impl App {
    /// Binds the admin listener. No server need be there yet.
    pub fn build(config: Config) -> anyhow::Result<Self> {
        let telemetry = Telemetry::new("projector")?;
        let metrics = Arc::new(Metrics::new(&telemetry));
        let readiness = Readiness::new();
        let ready = Ready {
            log: readiness.condition("kafka"),
            postgres: readiness.condition("postgres"),
            redis: readiness.condition("redis"),
        };
        let admin = AdminServer::bind(config.admin_addr, "projector", readiness.clone(), &telemetry)?
            .merge(admin::routes(&config));
        Ok(Self { config, admin, readiness, ready, metrics })
    }

    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Folds what it is assigned, until shutdown; the batch in hand is finished first.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { config, admin, readiness: _, ready, metrics } = self;
        tracing::info!(admin.addr = %admin.local_addr(), "listening");
        let admin = admin.serve(shutdown.clone())?;
        let (kafka, topic) = (&config.kafka, &config.topic);
        let judge = |is: &TopicFacts| topic.differences(is.partitions, is.replication, |name| is.setting(name));
        if let Some(partitions) = kafka.await_topic(&topic.name, judge, &ready.log, &shutdown).await? {
            let (sender, assignment) = watch::channel(None);
            let group = format!("{}.projectors.{}", topic.name, config.feeds.names());
            let group = Group::join(kafka, "projector", (&group, &meeting(&topic.name)), sender)?;
            let cache = Cache::connect(&config.redis_url, &config.redis_prefix)?;
            let grace = config.grace;
            let projector = Projector { config, partitions, cache, metrics, ready, assignment };
            let mut tasks = Tasks::new();
            tasks.spawn("projector", projector.run(shutdown.clone()));
            tokio::select! {
                () = shutdown.requested() => {}
                Some((_, result)) = tasks.ended() => result?,
            }
            tasks.drain(grace).await?;
            // Leaving blocks; others take over then.
            tokio::task::spawn_blocking(move || group.leave()).await?;
        }
        admin.stop().await;
        Ok(())
    }
}
