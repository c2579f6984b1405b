//! Configuration from the environment.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::Uri;
use chassis::border::Origins;
use chassis::env::{Contradictions, Env, EnvError, Secret};
use chassis::listeners::ListenerSettings;
use chassis::postgres::PostgresSettings;
use chassis::redis::RedisSettings;

/// Configuration from the environment. Each secret may also come from a file, named by the variable with `_FILE` added.
#[derive(Debug, Clone)]
pub struct Config {
    /// `POSTGRES_URL`: the primary server with the views and the journal. `sslmode=verify-full` in it means TLS.
    pub postgres: PostgresSettings,
    /// `POSTGRES_REPLICA_URLS`, separated by commas, default none: read replicas, which are preferred for rows and
    /// lists. The `POSTGRES_` limits, password and authorities apply to each server.
    pub postgres_replicas: Vec<PostgresSettings>,
    /// `POSTGRES_CONNECTIONS`, default 16: maximum number of concurrent queries. One more connection is reserved for
    /// polling the checkpoints.
    pub postgres_connections: usize,
    /// `POSTGRES_QUEUE`, default 1,000: maximum number of queued queries; any above it are refused.
    pub postgres_queue: usize,
    /// `POSTGRES_QUEUE_MS`, default 500: how long a query may be queued before it is refused.
    pub postgres_queue_wait: Duration,
    /// `REDIS_URL`: the cache of the views; `redis://host:port`, `redis-cluster://host:port?node=host:port` or
    /// `redis-sentinel://host:port/master?node=host:port`, or with `rediss` for TLS.
    pub redis: RedisSettings,
    /// `REDIS_CALLS`, default 2,048: maximum number of concurrent reads; more wait for up to two seconds.
    pub redis_calls: usize,
    /// `REDIS_PREFIX`, default `st`: prefix of all keys. Agrees with all projectors and query-apis, by the table
    /// `settings`.
    pub redis_prefix: String,
    /// `HTTP_ADDR`, default 127.0.0.1:8082: public listener.
    pub http_addr: SocketAddr,
    /// `PUBLIC_URL`, default http://127.0.0.1:8080: the URL at which clients reach the system. Events refer to their
    /// schemas by it. Agrees with the edge's address.
    pub public_url: String,
    /// `CORS_ORIGINS`, default none: sites whose pages may send requests from browsers, separated by commas, such as
    /// `https://shop.example`; `*` allows all. Agrees with the
    /// command-apis and the edge.
    pub cors_origins: Origins,
    /// `ADMIN_ADDR`, default 127.0.0.1:8282: admin listener.
    pub admin_addr: SocketAddr,
    pub listeners: ListenerSettings,
    /// `SHUTDOWN_GRACE_MS`, default 10,000: how long requests in flight may take after a shutdown was requested.
    pub grace: Duration,
}

impl Config {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let postgres = PostgresSettings::from_env(env)?;
        let replicas = urls(env.optional_secret("POSTGRES_REPLICA_URLS")?.as_ref()).into_iter();
        let config = Self {
            postgres_replicas: replicas
                .map(|url| postgres.at(url, "POSTGRES_REPLICA_URLS"))
                .collect::<Result<_, _>>()?,
            postgres,
            postgres_connections: env.or("POSTGRES_CONNECTIONS", 16)?,
            postgres_queue: env.or("POSTGRES_QUEUE", 1000)?,
            postgres_queue_wait: env.millis_or("POSTGRES_QUEUE_MS", Duration::from_millis(500))?,
            redis: RedisSettings::from_env(env)?,
            redis_calls: env.or("REDIS_CALLS", 2048)?,
            redis_prefix: env.or("REDIS_PREFIX", "st".to_owned())?,
            http_addr: env.or("HTTP_ADDR", SocketAddr::from(([127, 0, 0, 1], 8082)))?,
            public_url: env.or("PUBLIC_URL", "http://127.0.0.1:8080".to_owned())?.trim_end_matches('/').to_owned(),
            cors_origins: env.optional("CORS_ORIGINS")?.unwrap_or(Origins::None),
            admin_addr: env.or("ADMIN_ADDR", SocketAddr::from(([127, 0, 0, 1], 8282)))?,
            listeners: ListenerSettings::from_env(env)?,
            grace: env.millis_or("SHUTDOWN_GRACE_MS", Duration::from_secs(10))?,
        };
        config.contradictions().into_result()?;
        Ok(config)
    }

    fn contradictions(&self) -> Contradictions {
        let mut found = Contradictions::default();
        found.check_listeners(&self.listeners, &[("HTTP_ADDR", self.http_addr), ("ADMIN_ADDR", self.admin_addr)]);
        found.refuse_zeros([("POSTGRES_CONNECTIONS", self.postgres_connections), ("REDIS_CALLS", self.redis_calls)]);
        found.refuse_zeros([("SHUTDOWN_GRACE_MS", self.grace)]);
        let never_waits = self.postgres_queue > 0 && self.postgres_queue_wait.is_zero();
        let advice =
            "POSTGRES_QUEUE_MS is 0, so that no query could wait in the queue: set POSTGRES_QUEUE=0 as well, or a time";
        found.refuse_if(never_waits, &["POSTGRES_QUEUE", "POSTGRES_QUEUE_MS"], advice);
        let is_url = self.public_url.parse::<Uri>().is_ok_and(|url| {
            matches!(url.scheme_str(), Some("http" | "https")) && url.authority().is_some() && url.query().is_none()
        });
        found.refuse_if(!is_url, &["PUBLIC_URL"], "PUBLIC_URL must be a URL such as https://shop.example");
        found
    }
}

fn urls(list: Option<&Secret>) -> Vec<Secret> {
    let urls = list.map_or("", Secret::expose).split(',').map(str::trim);
    urls.filter(|url| !url.is_empty()).map(Secret::from).collect()
}

#[cfg(test)]
mod tests {
    use chassis::reference;

    use super::*;

    #[test]
    fn the_reference_lists_every_setting() {
        let env = Env::from([("POSTGRES_URL", "postgres://x"), ("REDIS_URL", "redis://x")]);
        chassis::telemetry::init_logs(&env).unwrap();
        Config::from_env(&env).unwrap();
        reference::check_settings("query-api", &env, &[include_str!("config.rs")]);
    }

    #[test]
    fn replicas_are_separated_by_commas_and_need_not_be() {
        let exposed = |text: &str| urls(Some(&Secret::from(text))).iter().map(|url| url.expose().to_owned()).collect();
        let list: Vec<String> = exposed("postgres://a/x, postgres://b/x,");
        assert_eq!(list, ["postgres://a/x", "postgres://b/x"]);
        assert!(urls(None).is_empty());
    }

    #[test]
    fn every_secret_can_come_from_a_file_and_none_is_shown() {
        let file =
            |scheme: &str| std::env::temp_dir().join(format!("stampede-{scheme}-{}-query-api", std::process::id()));
        let files = ["postgres", "redis"].map(|scheme| {
            std::fs::write(file(scheme), format!("{scheme}://hidden-in-a-file\n")).unwrap();
            file(scheme)
        });
        let replicas = ("POSTGRES_REPLICA_URLS_FILE", &files[0]);
        let named = [("POSTGRES_URL_FILE", &files[0]), ("REDIS_URL_FILE", &files[1]), replicas];
        let config = Config::from_env(&Env::from(named)).unwrap();
        files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
        assert_eq!(config.postgres_replicas.len(), 1);
        assert!(!format!("{config:?}").contains("hidden"));
    }
}
