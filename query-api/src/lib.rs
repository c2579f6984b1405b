#![doc = include_str!("../README.md")]
//!
//! # Invariants
//!
//! Invariant: an answer shows everything that its request's token names, and the token that it returns names nothing
//! that it does not show.
//!
//! Absent on purpose: writes to a view, except filling Redis from Postgres; state that a restart would lose.

pub mod config;
mod metrics;
mod http;
pub mod lists;
mod reads;
mod row;
mod limiter;
mod single_flight;
mod positions;
mod status;
mod redis;
pub mod postgres;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chassis::admin::AdminServer;
use chassis::exit::Misuse;
use chassis::listeners::{Listener, Listeners};
use chassis::readiness::{Condition, Readiness};
use chassis::shutdown::{Shutdown, Tasks};
use chassis::telemetry::Telemetry;
use chassis::telemetry::with_causes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use schemas::settings::{self, Difference, Settings};
use tokio::sync::watch;

pub use config::Config;

use metrics::Metrics;
use positions::Positions;
use postgres::{Limits, Store, StoreError};
use reads::Reads;
use redis::Cache;

/// Interval between polls of the checkpoints while a request waits; notifications from Redis usually arrive first.
const CHECKPOINTS_EVERY: Duration = Duration::from_millis(50);
/// Longest interval between polls of the checkpoints while no request waits; the `Age` of an answer is derived from
/// them.
const IDLE_CHECKPOINTS_EVERY: Duration = Duration::from_secs(1);
/// Interval between probes of the replicas. A replica that failed gets no queries until a probe succeeds.
const REPLICAS_EVERY: Duration = Duration::from_secs(2);
/// Interval between reads of the settings that services share, until there is something to compare with.
const SETTINGS_EVERY: Duration = Duration::from_millis(500);
/// Interval between attempts to read the log's identity at startup.
const LOG_RETRY: Duration = Duration::from_millis(250);

/// The service, with its listeners bound, before it serves.
pub struct App {
    config: Config,
    http: Listener,
    admin: AdminServer,
    readiness: Readiness,
    log_seen: Condition,
    redis_seen: Condition,
    reads: Arc<Reads>,
}

impl App {
    /// Binds the listeners. Neither Redis nor Postgres needs to be reachable yet.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let telemetry = Telemetry::new("query-api")?;
        let positions = Arc::new(Positions::default());
        let metrics = Arc::new(Metrics::new(&telemetry, &positions));
        let cache = Cache::connect(&config.redis, &config.redis_prefix, config.redis_calls)?;
        let limits = Limits {
            connections: config.postgres_connections,
            queue: config.postgres_queue,
            wait: config.postgres_queue_wait,
        };
        let store = Store::connect(&config.postgres, &config.postgres_replicas, limits)?;
        let reads = Reads::new(positions, cache, store, limits, metrics);
        let listeners = Listeners::new(&config.listeners, &telemetry)?;
        let http = listeners.bind(config.http_addr)?;
        let readiness = Readiness::new();
        let (log_seen, redis_seen) = (readiness.condition("postgres"), readiness.condition("redis"));
        let admin = AdminServer::bind(&listeners, config.admin_addr, "query-api", readiness.clone(), &telemetry)?;
        Ok(Self { config, http, admin, readiness, log_seen, redis_seen, reads })
    }

    pub fn http_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.http.local_addr()?)
    }

    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Serves until shutdown, then finishes the requests in flight and returns.
    ///
    /// The service becomes ready once it has read the log's identity from Postgres and has reached Redis. It stays
    /// ready if either is lost later, because the other still answers some queries.
    ///
    /// The future is boxed so that this crate compiles it, once, rather than each program that polls it.
    pub fn run(self, shutdown: Shutdown) -> BoxFuture<'static, anyhow::Result<()>> {
        self.serve(shutdown).boxed()
    }

    async fn serve(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { config, http, admin, readiness, log_seen, redis_seen, reads } = self;
        tracing::info!(http.addr = %http.local_addr()?, admin.addr = %admin.local_addr(), "listening");
        let mut tasks = Tasks::new();
        let latest = status::start(&config.postgres, admin.local_addr(), &reads, &readiness, &mut tasks, &shutdown)?;
        let admin = admin.merge(http::status::of_admin(latest.clone())).serve(shutdown.clone())?;
        // Requests in flight may wait for the views, so these are tracked until the last one has been answered.
        let answered = Shutdown::new();
        tasks.spawn("positions", follow(reads.clone(), log_seen, redis_seen, answered.clone()));
        let (wrong, mut wrong_settings) = watch::channel(None);
        let told = Settings::default().with(settings::REDIS_PREFIX, config.redis_prefix);
        tasks.spawn("settings", compare_settings(reads.clone(), told, wrong, shutdown.clone()));
        let router = http::router(reads, config.public_url.into(), latest);
        let border = http::border(config.cors_origins);
        let limits = chassis::http::Limits::new(config.grace);
        let serving = chassis::http::serve(http, router, border, limits, shutdown.clone());
        tasks.spawn("http", serving.map(move |()| answered.trigger()));
        tokio::select! {
            () = shutdown.requested() => {}
            Ok(()) = wrong_settings.changed() => shutdown.trigger(),
            Some((name, result)) = tasks.ended() => {
                shutdown.trigger();
                result.with_context(|| format!("task {name:?} ended unexpectedly"))?;
            }
        }
        // The grace period is for requests; the tasks that wind down after it get a little more time.
        tasks.drain(config.grace + Duration::from_millis(500)).await?;
        admin.stop().await;
        let differs = wrong_settings.borrow_and_update().clone();
        differs.map_or(Ok(()), |difference: Difference| Err(Misuse::new(difference).into()))
    }
}

/// Polls until a projector has stored the shared settings, sends a difference to `wrong` if there is one, and waits for
/// the shutdown.
async fn compare_settings(
    reads: Arc<Reads>,
    told: Settings,
    wrong: watch::Sender<Option<Difference>>,
    shutdown: Shutdown,
) {
    while !shutdown.is_requested() {
        match reads.store.redis_prefix().await {
            Ok(Some(kept)) => {
                if let Some(difference) = told.difference([(settings::REDIS_PREFIX, kept.as_str())]) {
                    wrong.send_replace(Some(difference));
                }
                return shutdown.requested().await;
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(error = %error, "reading the shared settings failed"),
        }
        shutdown.sleep(SETTINGS_EVERY).await;
    }
}

/// Reads the log's identity, then tracks the progress of the views in Redis and in Postgres until shutdown.
async fn follow(reads: Arc<Reads>, log_seen: Condition, redis_seen: Condition, shutdown: Shutdown) {
    while !shutdown.is_requested() {
        let known = async { Ok((reads.store.log().await?, reads.store.former_logs().await?)) };
        match known.await {
            Ok((Some(log), former)) => {
                reads.positions.know_log(log, former);
                log_seen.ready();
                break;
            }
            Ok((None, _)) => log_seen.waiting("the projector has not folded the first record yet"),
            Err(StoreError::Query(error))
                if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) =>
            {
                log_seen.waiting("the tables are missing: run `projector migrate`");
            }
            Err(error) => log_seen.waiting(with_causes(&error)),
        }
        tokio::select! {
            () = tokio::time::sleep(LOG_RETRY) => {}
            () = shutdown.requested() => return,
        }
    }
    let cache = reads.cache.clone().follow(reads.positions.clone(), redis_seen, shutdown.clone());
    tokio::join!(cache, follow_checkpoints(&reads, &shutdown), follow_replicas(&reads, &shutdown));
}

async fn follow_checkpoints(reads: &Reads, shutdown: &Shutdown) {
    while !shutdown.is_requested() {
        match reads.store.checkpoints().await {
            Ok(rows) => {
                rows.iter().map(postgres::made).for_each(|(view, is)| reads.positions.know_generation(view, is));
                reads.positions.advance_store(rows.iter().map(postgres::applied), Instant::now());
            }
            Err(error) => tracing::debug!(error = %error, "reading the checkpoints failed"),
        }
        tokio::select! {
            () = async {
                tokio::time::sleep(CHECKPOINTS_EVERY).await;
                // A timeout here simply means that the idle interval has passed.
                let _ = tokio::time::timeout(IDLE_CHECKPOINTS_EVERY, reads.positions.someone_waits()).await;
            } => {}
            () = shutdown.requested() => {}
        }
    }
}

async fn follow_replicas(reads: &Reads, shutdown: &Shutdown) {
    while let (Some(log), false) = (reads.positions.log(), shutdown.is_requested()) {
        for (replica, checkpoints) in reads.store.look_at_replicas(log).await.into_iter().enumerate() {
            let behind = checkpoints.map(|rows| reads.positions.behind(rows.iter().map(postgres::applied)));
            reads.metrics.probed(replica, behind);
        }
        shutdown.sleep(REPLICAS_EVERY).await;
    }
}
