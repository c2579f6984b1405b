//! What the environment says.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use chassis::env::{Env, EnvError, Secret};
use chassis::kafka::KafkaSettings;
use schemas::topic::LogTopic;
use schemas::views::FEEDS;

/// What the environment says. Each secret may come from a file, too, which a variable of its name and `_FILE` names.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaSettings,
    /// `EVENTS_TOPIC` (default `events`), `EVENTS_PARTITIONS` (default: as many as there are), `EVENTS_REPLICATION`
    /// and `EVENTS_MIN_ISR` (default 1 each: more is taken, less is refused).
    pub topic: LogTopic,
    /// `PROJECTOR_VIEWS`, e.g. `product,order`, or `none`: what this process folds; default: all. Those who fold the
    /// same share the partitions.
    pub feeds: Feeds,
    /// `POSTGRES_URL`.
    pub postgres_url: Secret,
    /// `REDIS_URL`.
    pub redis_url: Secret,
    /// `REDIS_PREFIX`, default `st`: what the names of all keys begin with.
    pub redis_prefix: String,
    /// `IDEMPOTENCY_WINDOW_SECS`, default 900: how long keys are remembered, as for command-api.
    pub window: Duration,
    /// `REACTOR_COMMAND_URLS`, e.g. `http://127.0.0.1:8181,http://127.0.0.1:8182`: internal listeners of command-api, to
    /// which this process sends what events cause; unset: it leaves that to others.
    pub command_urls: Vec<String>,
    /// `SERVICE_TOKEN`: for those listeners.
    pub service_token: Option<Secret>,
    /// `PAYMENT_WINDOW_SECS`, default 600: how long a confirmed order waits to be paid.
    pub payment_window: Duration,
    /// `CONFIRM_WITHIN_SECS`, default 900: how long a parked line of a placed order may be refused, time in which a partition
    /// is away not counted, before the order is rejected.
    pub confirm_within: Duration,
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
            feeds: env.or("PROJECTOR_VIEWS", Feeds::ALL)?,
            postgres_url: env.secret("POSTGRES_URL")?,
            redis_url: env.secret("REDIS_URL")?,
            redis_prefix: env.or("REDIS_PREFIX", "st".to_owned())?,
            window: env.secs_or("IDEMPOTENCY_WINDOW_SECS", Duration::from_secs(900))?,
            command_urls: env.or("REACTOR_COMMAND_URLS", Urls::default())?.0,
            service_token: env.optional_token("SERVICE_TOKEN")?,
            payment_window: env.secs_or("PAYMENT_WINDOW_SECS", Duration::from_secs(600))?,
            confirm_within: env.secs_or("CONFIRM_WITHIN_SECS", Duration::from_secs(900))?,
            admin_addr: env.or("ADMIN_ADDR", SocketAddr::from(([127, 0, 0, 1], 8283)))?,
            grace: env.millis_or("SHUTDOWN_GRACE_MS", Duration::from_secs(10))?,
        })
    }
}

/// With commas between them.
#[derive(Debug, Default)]
struct Urls(Vec<String>);

#[derive(Debug, thiserror::Error)]
#[error("a list of URLs that begin with http://")]
struct NoUrl;

impl FromStr for Urls {
    type Err = NoUrl;

    fn from_str(text: &str) -> Result<Self, NoUrl> {
        let url = |part: &str| {
            let url = part.trim().trim_end_matches('/');
            url.starts_with("http://").then(|| url.to_owned()).ok_or(NoUrl)
        };
        text.split(',').map(url).collect::<Result<_, _>>().map(Self)
    }
}

/// Some of [`FEEDS`], by their names in a list with commas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feeds([bool; FEEDS.len()]);

impl Feeds {
    pub const ALL: Self = Self([true; FEEDS.len()]);

    /// `feed`: its index in [`FEEDS`].
    pub fn only(feed: usize) -> Self {
        Self(std::array::from_fn(|index| index == feed))
    }

    /// Indices in [`FEEDS`].
    pub fn of(feeds: impl IntoIterator<Item = usize>) -> Self {
        let mut all = Self([false; FEEDS.len()]);
        feeds.into_iter().for_each(|feed| all.0[feed] = true);
        all
    }

    /// Returns those of which it is so.
    #[must_use]
    pub fn filter(self, is_so: impl Fn(usize) -> bool) -> Self {
        Self(std::array::from_fn(|feed| self.0[feed] && is_so(feed)))
    }

    /// `feed`: as above.
    pub fn contain(self, feed: usize) -> bool {
        self.0[feed]
    }

    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    /// Indices in [`FEEDS`].
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..FEEDS.len()).filter(move |feed| self.contain(*feed))
    }

    /// The names, in one order however they were given.
    pub fn names(self) -> String {
        self.iter().map(|feed| FEEDS[feed]).collect::<Vec<_>>().join("+")
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a list of {}, or none", FEEDS.join(", "))]
pub struct NoFeed;

impl FromStr for Feeds {
    type Err = NoFeed;

    fn from_str(text: &str) -> Result<Self, NoFeed> {
        let mut feeds = Self([false; FEEDS.len()]);
        if text.trim() == "none" {
            return Ok(feeds);
        }
        for name in text.split(',') {
            let feed = FEEDS.iter().position(|feed| *feed == name.trim()).ok_or(NoFeed)?;
            feeds.0[feed] = true;
        }
        Ok(feeds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feeds_are_named_in_any_order_and_unknown_ones_are_refused() {
        assert_eq!("order, product".parse::<Feeds>().unwrap().names(), "product+order");
        assert_eq!(FEEDS.join(",").parse::<Feeds>().unwrap(), Feeds::ALL);
        assert!("none".parse::<Feeds>().unwrap().is_empty());
        for text in ["", "product,", "products", "none,product"] {
            assert!(text.parse::<Feeds>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_secret_can_come_from_a_file_and_none_is_shown() {
        let file = std::env::temp_dir().join(format!("stampede-config-{}-projector", std::process::id()));
        std::fs::write(&file, "hidden-in-a-file\n").unwrap();
        let env = ["POSTGRES_URL_FILE", "REDIS_URL_FILE", "SERVICE_TOKEN_FILE"].map(|name| (name, file.as_os_str()));
        let config = Config::from_env(&Env::from(env)).unwrap();
        let told = [&config.postgres_url, &config.redis_url, config.service_token.as_ref().unwrap()];
        std::fs::remove_file(&file).unwrap();
        assert!(told.iter().all(|secret| secret.expose() == "hidden-in-a-file"));
        assert!(!format!("{config:?}").contains("hidden"));
    }
}
