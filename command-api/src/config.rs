//! What the environment says.

mod peers;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chassis::border::Origins;
use chassis::env::{Env, EnvError, Secret};
use chassis::kafka::KafkaSettings;
use schemas::exceptions::Exceptions;
use schemas::settings::{self, Settings};
use schemas::topic::LogTopic;

use crate::exceptions;

pub use peers::{PeerUrl, PeerUrlError, PeerUrls};

/// What the environment says. Each secret may come from a file, too, which a variable of its name and `_FILE` names.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaSettings,
    pub topic: LogTopic,
    /// `LOG_EXCEPTION_KEYS`, default none: the public keys of those who may sign that a value of the log is passed over which
    /// cannot be read.
    pub exceptions: Arc<Exceptions>,
    /// `POSTGRES_URL`: where the projector keeps the journal. Without it everything is folded from the log's beginning
    /// and stays in memory.
    pub postgres_url: Option<Secret>,
    /// `STATE_MAX_MIB`, default 1024: what the aggregates in memory may take. Those that were not used lately are let
    /// go as far as Postgres has them; where that is not enough, commands on others are refused.
    pub state_max_bytes: usize,
    /// `HTTP_ADDR`, default 127.0.0.1:8081: what clients and the edge call.
    pub http_addr: SocketAddr,
    /// `INTERNAL_ADDR`, default 127.0.0.1:8181: links of other instances, and commands that finish what an event
    /// began.
    pub internal_addr: SocketAddr,
    /// `INTERNAL_URL`, default `http://` and the internal address as bound: what other instances call. It is
    /// written into claims. An address that stands for every interface, such as 0.0.0.0, needs it.
    pub internal_url: Option<PeerUrl>,
    /// `PEER_URLS`, default every port of the host that `INTERNAL_URL` names: where other instances may be, separated by
    /// commas, each as `http://host:8181`, `http://host:*` or `http://*.domain:8181`. The service token goes to no other
    /// address, though a claim in the log names it.
    pub peer_urls: Option<PeerUrls>,
    /// `CORS_ORIGINS`, default none: sites whose pages may ask from browsers, separated by commas, such as
    /// `https://shop.example`; `*`: all.
    pub cors_origins: Origins,
    /// `ADMIN_ADDR`, default 127.0.0.1:8281.
    pub admin_addr: SocketAddr,
    /// `PARTITIONS`, e.g. `0-5` or `0,2,4`: owns these, whatever others do; default: what the group of all instances
    /// assigns.
    pub share: Share,
    /// `SERVICE_TOKEN`: who may use the internal listener; 16 characters or more.
    pub service_token: Secret,
    /// `IDEMPOTENCY_WINDOW_SECS`, default 900: how long a key is remembered.
    pub window: Duration,
    /// `PRODUCERS`, default 1: Kafka producers, over which the partitions are spread. Each has threads of its own and
    /// sends its own requests: on two cores a second one costs a tenth more, and there is nothing for it to do.
    pub producers: usize,
    /// `SHUTDOWN_GRACE_MS`, default 10,000.
    pub grace: Duration,
}

impl Config {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let internal_addr = env.or("INTERNAL_ADDR", loopback(8181))?;
        let internal_url = env.optional("INTERNAL_URL")?;
        if internal_url.is_none() && internal_addr.ip().is_unspecified() {
            let expected = "a URL like http://host:8181 for other instances, since INTERNAL_ADDR names no host";
            return Err(EnvError::Missing { name: "INTERNAL_URL".to_owned(), expected });
        }
        Ok(Self {
            kafka: KafkaSettings::from_env(env)?,
            topic: topic(env)?,
            exceptions: Arc::new(Exceptions::honouring(exceptions::keys(env)?.unwrap_or_default())),
            postgres_url: env.optional_secret("POSTGRES_URL")?,
            state_max_bytes: env.or("STATE_MAX_MIB", 1024_usize)?.saturating_mul(1024 * 1024),
            http_addr: env.or("HTTP_ADDR", loopback(8081))?,
            internal_addr,
            internal_url,
            peer_urls: env.optional("PEER_URLS")?,
            cors_origins: env.or("CORS_ORIGINS", Origins::None)?,
            admin_addr: env.or("ADMIN_ADDR", loopback(8281))?,
            share: env.or("PARTITIONS", Share::Assigned)?,
            service_token: env.token("SERVICE_TOKEN")?,
            window: env.secs_or("IDEMPOTENCY_WINDOW_SECS", Duration::from_secs(900))?,
            producers: env.or("PRODUCERS", Producers(1))?.0,
            grace: env.millis_or("SHUTDOWN_GRACE_MS", Duration::from_secs(10))?,
        })
    }

    /// What other services of the log have to be told alike. `partitions`: of the topic as it is.
    pub(crate) fn shared(&self, partitions: u32) -> Settings {
        let told = Settings::default().with_secs(settings::IDEMPOTENCY_WINDOW_SECS, self.window);
        told.with(settings::PARTITIONS, partitions)
    }
}

/// `EVENTS_TOPIC` (default `events`), `EVENTS_PARTITIONS` (default: as many as there are; 12 in a new log),
/// `EVENTS_REPLICATION` and `EVENTS_MIN_ISR` (default 1 each: more is taken, less is refused).
pub fn topic(env: &Env) -> Result<LogTopic, EnvError> {
    Ok(LogTopic {
        name: env.or("EVENTS_TOPIC", "events".to_owned())?,
        partitions: env.optional("EVENTS_PARTITIONS")?,
        replication: env.or("EVENTS_REPLICATION", 1)?,
        min_isr: env.or("EVENTS_MIN_ISR", 1)?,
    })
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// One to eight.
struct Producers(usize);

impl FromStr for Producers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.parse().map_err(|_| "it is not a number".to_owned())?;
        if (1..=8).contains(&count) { Ok(Self(count)) } else { Err("it is not 1 to 8".to_owned()) }
    }
}

/// Which partitions an instance wants to own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    Assigned,
    These(BTreeSet<u32>),
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| format!("{text:?} is not a partition"));
        let mut partitions = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if last < first || last - first > MAX_SHARE {
                return Err(format!("{part:?} is not a range of partitions"));
            }
            partitions.extend(first..=last);
        }
        Ok(Self::These(partitions))
    }
}

const MAX_SHARE: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_list_of_partitions_and_ranges() {
        assert_eq!("0-2,5".parse(), Ok(Share::These(BTreeSet::from([0, 1, 2, 5]))));
        assert_eq!("7".parse(), Ok(Share::These(BTreeSet::from([7]))));
        for text in ["", "a", "2-1", "1-", "0-99999", "-1"] {
            assert!(text.parse::<Share>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_address_that_names_no_host_needs_a_url_for_others() {
        let settings = [("SERVICE_TOKEN", "hidden-from-others"), ("INTERNAL_ADDR", "0.0.0.0:8181")];
        let error = Config::from_env(&Env::from(settings)).unwrap_err().to_string();
        assert!(error.starts_with("INTERNAL_URL must be set"), "{error}");
        let named = settings.into_iter().chain([("INTERNAL_URL", "http://commands-1:8181")]);
        let config = Config::from_env(&named.collect::<Env>()).unwrap();
        assert_eq!(config.internal_url.as_ref().map(PeerUrl::as_str), Some("http://commands-1:8181"));
    }

    #[test]
    fn the_service_token_has_no_default_and_is_never_shown() {
        assert!(Config::from_env(&Env::from([("HTTP_ADDR", "127.0.0.1:0")])).is_err());
        let config = Config::from_env(&Env::from([("SERVICE_TOKEN", "hidden-from-others")])).unwrap();
        assert!(!format!("{config:?}").contains("hidden"));
    }

    #[test]
    fn every_secret_can_come_from_a_file_and_none_is_shown() {
        let file = std::env::temp_dir().join(format!("stampede-config-{}-command-api", std::process::id()));
        std::fs::write(&file, "hidden-in-a-file\n").unwrap();
        let env = ["POSTGRES_URL_FILE", "SERVICE_TOKEN_FILE"].map(|name| (name, file.as_os_str()));
        let config = Config::from_env(&Env::from(env)).unwrap();
        let told = [config.postgres_url.as_ref().unwrap(), &config.service_token];
        std::fs::remove_file(&file).unwrap();
        assert!(told.iter().all(|secret| secret.expose() == "hidden-in-a-file"));
        assert!(!format!("{config:?}").contains("hidden"));
    }
}
