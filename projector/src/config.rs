//! What the environment says.

use std::net::SocketAddr;
use std::time::Duration;

use chassis::env::{Env, EnvError, Secret};
use chassis::kafka::KafkaSettings;
use schemas::topic::LogTopic;

#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaSettings,
    /// `EVENTS_TOPIC` (default `events`), `EVENTS_PARTITIONS` (default: as many as there are), `EVENTS_REPLICATION`
    /// and `EVENTS_MIN_ISR` (default 1 each: more is taken, less is refused).
    pub topic: LogTopic,
    /// `POSTGRES_URL`.
    pub postgres_url: Secret,
    /// `REDIS_URL`.
    pub redis_url: Secret,
    /// `REDIS_PREFIX`, default `st`: what the names of all keys begin with.
    pub redis_prefix: String,
    /// `IDEMPOTENCY_WINDOW_SECS`, default 900: how long keys are remembered, as for command-api.
    pub window: Duration,
    /// `ADMIN_ADDR`, default 127.0.0.1:8283.
    pub admin_addr: SocketAddr,
    /// `SHUTDOWN_GRACE_MS`, default 10,000.
    pub grace: Duration,
}

impl Config {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        Ok(Self {
            kafka: KafkaSettings::from_env(env)?,
            topic: LogTopic {
                name: env.or("EVENTS_TOPIC", "events".to_owned())?,
                partitions: env.optional("EVENTS_PARTITIONS")?,
                replication: env.or("EVENTS_REPLICATION", 1)?,
                min_isr: env.or("EVENTS_MIN_ISR", 1)?,
            },
            postgres_url: env.required("POSTGRES_URL")?,
            redis_url: env.required("REDIS_URL")?,
            redis_prefix: env.or("REDIS_PREFIX", "st".to_owned())?,
            window: env.secs_or("IDEMPOTENCY_WINDOW_SECS", Duration::from_secs(900))?,
            admin_addr: env.or("ADMIN_ADDR", SocketAddr::from(([127, 0, 0, 1], 8283)))?,
            grace: env.millis_or("SHUTDOWN_GRACE_MS", Duration::from_secs(10))?,
        })
    }
}
