//! Configuration from environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chassis::env::{Contradictions, Env, EnvError, Tokens};
use chassis::kafka::KafkaSettings;
use chassis::listeners::ListenerSettings;
use chassis::postgres::PostgresSettings;
use chassis::redis::RedisSettings;
use chassis::tls;
use rdkafka::error::KafkaError;
use schemas::exceptions::Exceptions;
use schemas::feeds::{FeedId, PerFeed, StoredView};
use schemas::topic::{self, LogTopic};

/// Settings from the environment. Each secret may also come from a file: the variable of its name with `_FILE` holds
/// the path.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaSettings,
    pub topic: LogTopic,
    /// `LOG_EXCEPTION_KEYS`, default none: public keys of the operators who may sign exceptions for unreadable records.
    /// Agrees with the command-apis.
    pub exceptions: Arc<Exceptions>,
    /// `PROJECTOR_VIEWS`, e.g. `product,order`, or `none`: the feeds that this process folds; default: all. Processes
    /// with the same feeds share the partitions.
    pub feeds: Feeds,
    /// `POSTGRES_URL`: the primary server, for the views and the journal. `sslmode=verify-full` in it means TLS.
    pub postgres: PostgresSettings,
    /// `REDIS_URL`: the cache of the views; `redis://host:port`, `redis-cluster://host:port?node=host:port` or
    /// `redis-sentinel://host:port/master?node=host:port`, or with `rediss` for TLS.
    pub redis: RedisSettings,
    /// `REDIS_PREFIX`, default `st`: the prefix of all keys. Agrees with all projectors and query-apis, by the table
    /// `settings`.
    pub redis_prefix: String,
    /// `IDEMPOTENCY_WINDOW_SECS`, default 900: retention of idempotency keys. Agrees with all command-apis
    /// and projectors, by the table `settings`.
    pub window: Duration,
    /// `REACTOR_COMMAND_URLS`, e.g. `http://127.0.0.1:8181,http://127.0.0.1:8182`: internal listeners of command-api,
    /// to which the reactor sends commands; if unset, this process runs no reactor. The certificate of an `https://` URL
    /// must name its host. Agrees with `INTERNAL_ADDR` of the command-apis.
    pub command_urls: Vec<String>,
    /// `SERVICE_TOKEN`: bearer token of the internal listeners of command-api; at least 16 characters. Of two lines, the
    /// first is sent. Agrees with the command-apis.
    pub service_token: Option<Tokens>,
    /// `PAYMENT_WINDOW_SECS`, default 600: time in which a confirmed order must be paid. Agrees with all projectors that
    /// react, by the table `settings`.
    pub payment_window: Duration,
    /// `CONFIRM_WITHIN_SECS`, default 900: time for which a parked line of a placed order may be refused before the
    /// order is rejected. Time in which a partition is unavailable does not count. Agrees with all projectors that react,
    /// by the table `settings`.
    pub confirm_within: Duration,
    /// `ADMIN_ADDR`, default 127.0.0.1:8283: admin listener.
    pub admin_addr: SocketAddr,
    pub listeners: ListenerSettings,
    /// Authorities that command-api's certificates are verified with; `None` for those of the system.
    pub ca_file: Option<PathBuf>,
    /// `SHUTDOWN_GRACE_MS`, default 10,000: time that tasks get to finish at shutdown.
    pub grace: Duration,
}

impl Config {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let config = Self {
            kafka: KafkaSettings::from_env(env)?,
            topic: LogTopic {
                // `EVENTS_TOPIC`, default `events`: name of the log's topic. Agrees with the command-apis.
                name: env.or("EVENTS_TOPIC", "events".to_owned())?,
                // `EVENTS_PARTITIONS`: number of the topic's partitions. Default: the existing number. Agrees with the
                // topic.
                partitions: env.optional("EVENTS_PARTITIONS")?,
                // `EVENTS_REPLICATION`, default 1: minimum number of copies of the topic, which may have more.
                replication: env.or("EVENTS_REPLICATION", 1)?,
                // `EVENTS_MIN_ISR`, default 1: minimum `min.insync.replicas` of the topic, which may have more.
                min_isr: env.or("EVENTS_MIN_ISR", 1)?,
            },
            exceptions: Arc::new(exceptions(env)?),
            feeds: env.optional("PROJECTOR_VIEWS")?.unwrap_or(Feeds::ALL),
            postgres: PostgresSettings::from_env(env)?,
            redis: RedisSettings::from_env(env)?,
            redis_prefix: env.or("REDIS_PREFIX", "st".to_owned())?,
            window: env.secs_or("IDEMPOTENCY_WINDOW_SECS", Duration::from_secs(900))?,
            command_urls: env.optional::<Urls>("REACTOR_COMMAND_URLS")?.unwrap_or_default().0,
            service_token: env.optional_tokens("SERVICE_TOKEN")?,
            payment_window: env.secs_or("PAYMENT_WINDOW_SECS", Duration::from_secs(600))?,
            confirm_within: env.secs_or("CONFIRM_WITHIN_SECS", Duration::from_secs(900))?,
            admin_addr: env.or("ADMIN_ADDR", SocketAddr::from(([127, 0, 0, 1], 8283)))?,
            listeners: ListenerSettings::from_env(env)?,
            ca_file: tls::ca_file(env)?,
            grace: env.millis_or("SHUTDOWN_GRACE_MS", Duration::from_secs(10))?,
        };
        config.contradictions().into_result()?;
        Ok(config)
    }

    fn contradictions(&self) -> Contradictions {
        let mut found = Contradictions::default();
        found.check_listeners(&self.listeners, &[("ADMIN_ADDR", self.admin_addr)]);
        found.refuse_zeros([
            ("IDEMPOTENCY_WINDOW_SECS", self.window),
            ("PAYMENT_WINDOW_SECS", self.payment_window),
            ("CONFIRM_WITHIN_SECS", self.confirm_within),
            ("SHUTDOWN_GRACE_MS", self.grace),
        ]);
        self.topic.contradictions().for_each(|(settings, advice)| found.refuse_if(true, settings, advice));
        let has_no_token = !self.command_urls.is_empty() && self.service_token.is_none();
        let advice = "REACTOR_COMMAND_URLS requires SERVICE_TOKEN: set the token of the command-apis";
        found.refuse_if(has_no_token, &["REACTOR_COMMAND_URLS", "SERVICE_TOKEN"], advice);
        found
    }
}

impl Config {
    /// Loads the signed exceptions once, for tools that read the log to its end and do not wait for a new exception.
    pub(crate) async fn learn_exceptions(&self) -> Result<(), KafkaError> {
        self.exceptions.learn(&self.kafka.values(&topic::exceptions(&self.topic.name)).await?);
        Ok(())
    }
}

fn exceptions(env: &Env) -> Result<Exceptions, EnvError> {
    let unfit =
        |_| EnvError::Unfit { name: "LOG_EXCEPTION_KEYS".to_owned(), reason: "it is not a list of public keys" };
    let keys =
        env.optional_secret("LOG_EXCEPTION_KEYS")?.map(|keys| keys.expose().parse()).transpose().map_err(unfit)?;
    Ok(Exceptions::honouring(keys.unwrap_or_default()))
}

/// A comma-separated list of URLs.
#[derive(Debug, Default)]
struct Urls(Vec<String>);

#[derive(Debug, thiserror::Error)]
#[error("a list of URLs such as https://host:8181, without a path")]
struct NoUrl;

impl FromStr for Urls {
    type Err = NoUrl;

    fn from_str(text: &str) -> Result<Self, NoUrl> {
        let url = |part: &str| {
            let url = reqwest::Url::parse(part.trim()).map_err(|_| NoUrl)?;
            let has_no_user = url.username().is_empty() && url.password().is_none();
            let is_address = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
            let is_url = matches!(url.scheme(), "http" | "https") && has_no_user && is_address;
            is_url.then(|| url.as_str().trim_end_matches('/').to_owned()).ok_or(NoUrl)
        };
        text.split(',').map(url).collect::<Result<_, _>>().map(Self)
    }
}

/// A set of feeds, written as a comma-separated list of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feeds(PerFeed<bool>);

impl Feeds {
    pub const ALL: Self = Self([true; FeedId::COUNT]);

    pub fn only(feed: FeedId) -> Self {
        Self::of([feed])
    }

    pub fn of(feeds: impl IntoIterator<Item = FeedId>) -> Self {
        let mut all = Self([false; FeedId::COUNT]);
        feeds.into_iter().for_each(|feed| all.0[feed] = true);
        all
    }

    /// Returns the feeds for which `is_so` holds.
    #[must_use]
    pub fn filter(self, is_so: impl Fn(FeedId) -> bool) -> Self {
        Self(FeedId::all().map(|feed| self.0[feed] && is_so(feed)))
    }

    pub fn contain(self, feed: FeedId) -> bool {
        self.0[feed]
    }

    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    pub fn iter(self) -> impl Iterator<Item = FeedId> {
        FeedId::all().into_iter().filter(move |feed| self.contain(*feed))
    }

    /// Returns the feeds that are views.
    pub fn views(self) -> impl Iterator<Item = StoredView> {
        StoredView::all().into_iter().filter(move |view| self.contain(FeedId::View(*view)))
    }

    /// Returns the names, in an order that does not depend on the order in which they were given.
    pub fn names(self) -> String {
        self.iter().map(FeedId::name).collect::<Vec<_>>().join("+")
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a list of {}, or none", FeedId::names().join(", "))]
pub struct NoFeed;

impl FromStr for Feeds {
    type Err = NoFeed;

    fn from_str(text: &str) -> Result<Self, NoFeed> {
        if text.trim() == "none" {
            return Ok(Self::of([]));
        }
        let feeds = text.split(',').map(|name| FeedId::named(name.trim()).ok_or(NoFeed));
        Ok(Self::of(feeds.collect::<Result<Vec<_>, _>>()?))
    }
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
        reference::check_settings("projector", &env, &[include_str!("config.rs")]);
    }

    #[test]
    fn a_malformed_url_is_refused_and_not_shown() {
        for (name, url) in [
            ("POSTGRES_URL", "postgres://me:hunter2@host:port/db"),
            ("REDIS_URL", "redis://me:hunter2@host:port"),
            ("REACTOR_COMMAND_URLS", "https://me:hunter2@host:8181"),
            ("REACTOR_COMMAND_URLS", "http://"),
            ("REACTOR_COMMAND_URLS", "http://hunter2:8181/path"),
        ] {
            let right = [("POSTGRES_URL", "postgres://x"), ("REDIS_URL", "redis://x")];
            let env: Env = right.into_iter().chain([(name, url)]).collect();
            let error = Config::from_env(&env).unwrap_err().to_string();
            assert!(error.starts_with(name) && !error.contains("hunter2"), "{error}");
            assert_eq!(env.survey(Config::from_env).errors.len(), 1);
        }
        let urls: Urls = "http://a:8181/, https://b".parse().unwrap();
        assert_eq!(urls.0, ["http://a:8181", "https://b"]);
    }

    #[test]
    fn feeds_are_named_in_any_order_and_unknown_ones_are_refused() {
        assert_eq!("order, product".parse::<Feeds>().unwrap().names(), "product+order");
        assert_eq!(FeedId::names().join(",").parse::<Feeds>().unwrap(), Feeds::ALL);
        assert!("none".parse::<Feeds>().unwrap().is_empty());
        for text in ["", "product,", "products", "none,product"] {
            assert!(text.parse::<Feeds>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_secret_can_come_from_a_file_and_none_is_shown() {
        let file =
            |scheme: &str| std::env::temp_dir().join(format!("stampede-{scheme}-{}-projector", std::process::id()));
        let files = ["postgres", "redis"].map(|scheme| {
            std::fs::write(file(scheme), format!("{scheme}://hidden-in-a-file\n")).unwrap();
            file(scheme)
        });
        let named =
            [("POSTGRES_URL_FILE", &files[0]), ("REDIS_URL_FILE", &files[1]), ("SERVICE_TOKEN_FILE", &files[0])];
        let config = Config::from_env(&Env::from(named)).unwrap();
        files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
        assert_eq!(config.service_token.as_ref().unwrap().sent().expose(), "postgres://hidden-in-a-file");
        assert!(!format!("{config:?}").contains("hidden"));
    }
}
