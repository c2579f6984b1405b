//! What the environment says.

use std::net::SocketAddr;
use std::time::Duration;

use chassis::env::{Env, EnvError, Secret};

#[derive(Debug, Clone)]
pub struct Config {
    /// `POSTGRES_URL`.
    pub postgres_url: Secret,
    /// `POSTGRES_CONNECTIONS`, default 16: the most that this instance opens.
    pub postgres_connections: usize,
    /// `REDIS_URL`.
    pub redis_url: Secret,
    /// `REDIS_PREFIX`, default `st`: what the names of all keys begin with.
    pub redis_prefix: String,
    /// `HTTP_ADDR`, default 127.0.0.1:8082.
    pub http_addr: SocketAddr,
    /// `ADMIN_ADDR`, default 127.0.0.1:8282.
    pub admin_addr: SocketAddr,
    /// `SHUTDOWN_GRACE_MS`, default 10,000.
    pub grace: Duration,
}

impl Config {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        Ok(Self {
            postgres_url: env.required("POSTGRES_URL")?,
            postgres_connections: env.or("POSTGRES_CONNECTIONS", 16)?,
            redis_url: env.required("REDIS_URL")?,
            redis_prefix: env.or("REDIS_PREFIX", "st".to_owned())?,
            http_addr: env.or("HTTP_ADDR", SocketAddr::from(([127, 0, 0, 1], 8082)))?,
            admin_addr: env.or("ADMIN_ADDR", SocketAddr::from(([127, 0, 0, 1], 8282)))?,
            grace: env.millis_or("SHUTDOWN_GRACE_MS", Duration::from_secs(10))?,
        })
    }
}
