//! Configuration from environment variables.

mod peers;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chassis::border::Origins;
use chassis::env::{Contradictions, Env, EnvError, Tokens};
use chassis::kafka::KafkaSettings;
use chassis::listeners::ListenerSettings;
use chassis::postgres::PostgresSettings;
use chassis::tls;
use schemas::exceptions::{Exceptions, Keys};
use schemas::settings::{self, Settings};
use schemas::topic::LogTopic;

pub use peers::{PeerUrl, PeerUrlError, PeerUrls};

/// Settings from environment variables. A secret may come from a file instead, named by the variable with the suffix
/// `_FILE`.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaSettings,
    pub topic: LogTopic,
    /// `LOG_EXCEPTION_KEYS`, default none: public keys of those who may sign exceptions, which let readers skip an
    /// undecodable value of the log. Agrees with the projectors.
    pub exceptions: Arc<Exceptions>,
    /// `POSTGRES_URL`: the database in which the projector keeps the journal. Without it, all state is folded from the
    /// beginning of the log and stays in memory. `sslmode=verify-full` in it means TLS.
    pub postgres: Option<PostgresSettings>,
    /// `STATE_MAX_MIB`, default 1024: maximum memory for aggregates. Those not used recently are evicted once Postgres
    /// has them; where that does not free enough, commands on other aggregates are refused.
    pub state_max_bytes: usize,
    /// `HTTP_ADDR`, default 127.0.0.1:8081: public listener, for clients and the edge.
    pub http_addr: SocketAddr,
    /// `INTERNAL_ADDR`, default 127.0.0.1:8181: internal listener, for other instances and the reactor.
    pub internal_addr: SocketAddr,
    /// `INTERNAL_URL`, default `https://` with TLS, else `http://`, and the internal address as bound: URL at which other
    /// instances reach this one, written into claims. Its host is verified by its certificate. Required if the internal
    /// address is unspecified, such as 0.0.0.0. Agrees with `PEER_URLS` of the other instances, which must allow it.
    pub internal_url: Option<PeerUrl>,
    /// `PEER_URLS`, default every port of the host in `INTERNAL_URL`: addresses of other instances, separated by
    /// commas, each as `https://host:8181`, `https://host:*` or `http://*.domain:8181`. The service token is sent to no
    /// other address, even if a claim in the log names it.
    pub peer_urls: Option<PeerUrls>,
    /// `CORS_ORIGINS`, default none: origins whose pages may send requests from browsers, separated by commas, such as
    /// `https://shop.example`; `*` allows all. Agrees with the
    /// query-apis and the edge.
    pub cors_origins: Origins,
    /// `ADMIN_ADDR`, default 127.0.0.1:8281: admin listener.
    pub admin_addr: SocketAddr,
    pub listeners: ListenerSettings,
    /// Authorities that certificates of peers are verified with; `None` for those of the system.
    pub ca_file: Option<PathBuf>,
    /// `PARTITIONS`, such as `0-5` or `0,2,4`: partitions to own regardless of other instances. Default: those that the
    /// consumer group assigns.
    pub share: Share,
    /// `SERVICE_TOKEN`: bearer token of the internal listener; at least 16 characters. Two lines are two tokens:
    /// the first is sent, and both are accepted. Agrees with the other instances and the projectors that react.
    pub service_token: Tokens,
    /// `STAFF_TOKEN`: bearer token of the commands of staff, such as those for prices and stock; at least 16 characters.
    /// Two lines are two tokens, both accepted. Without it, `HTTP_ADDR` on loopback takes these commands from everyone,
    /// and any other address takes them from nobody. Agrees with the other instances.
    pub staff_token: Option<Tokens>,
    /// `IDEMPOTENCY_WINDOW_SECS`, default 900: time for which an idempotency key is remembered. Agrees with all
    /// command-apis and projectors, by the table `settings`.
    pub window: Duration,
    /// `PRODUCERS`, default 1: number of Kafka producers that share the partitions. Each has its own threads and sends
    /// its own requests: on two cores a second one costs a tenth more and has nothing to do.
    pub producers: usize,
    /// `SHUTDOWN_GRACE_MS`, default 10,000: time for requests in flight to finish at shutdown.
    pub grace: Duration,
}

impl Config {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let config = Self {
            kafka: KafkaSettings::from_env(env)?,
            topic: topic(env)?,
            exceptions: Arc::new(Exceptions::honouring(exception_keys(env)?.unwrap_or_default())),
            postgres: PostgresSettings::optional_from_env(env)?,
            state_max_bytes: env.or("STATE_MAX_MIB", 1024_usize)?.saturating_mul(1024 * 1024),
            http_addr: env.or("HTTP_ADDR", loopback(8081))?,
            internal_addr: env.or("INTERNAL_ADDR", loopback(8181))?,
            internal_url: env.optional("INTERNAL_URL")?,
            peer_urls: env.optional("PEER_URLS")?,
            cors_origins: env.optional("CORS_ORIGINS")?.unwrap_or(Origins::None),
            admin_addr: env.or("ADMIN_ADDR", loopback(8281))?,
            listeners: ListenerSettings::from_env(env)?,
            ca_file: tls::ca_file(env)?,
            share: env.optional("PARTITIONS")?.unwrap_or(Share::Assigned),
            service_token: env.tokens("SERVICE_TOKEN")?,
            staff_token: env.optional_tokens("STAFF_TOKEN")?,
            window: env.secs_or("IDEMPOTENCY_WINDOW_SECS", Duration::from_secs(900))?,
            producers: env.or("PRODUCERS", Producers(1))?.0,
            grace: env.millis_or("SHUTDOWN_GRACE_MS", Duration::from_secs(10))?,
        };
        config.contradictions().into_result()?;
        Ok(config)
    }

    fn contradictions(&self) -> Contradictions {
        let mut found = Contradictions::default();
        let listeners =
            [("HTTP_ADDR", self.http_addr), ("INTERNAL_ADDR", self.internal_addr), ("ADMIN_ADDR", self.admin_addr)];
        found.check_listeners(&self.listeners, &listeners);
        found.refuse_zeros([("STATE_MAX_MIB", self.state_max_bytes)]);
        found.refuse_zeros([("IDEMPOTENCY_WINDOW_SECS", self.window), ("SHUTDOWN_GRACE_MS", self.grace)]);
        self.topic.contradictions().for_each(|(settings, advice)| found.refuse_if(true, settings, advice));
        if let (Share::These(share), Some(partitions)) = (&self.share, self.topic.partitions) {
            let advice = format!("PARTITIONS names some beyond the {partitions} of EVENTS_PARTITIONS: leave them out");
            found.refuse_if(share.last() >= Some(&partitions), &["PARTITIONS", "EVENTS_PARTITIONS"], advice);
        }
        let Some(url) = &self.internal_url else {
            let advice = "INTERNAL_URL must be set, such as to https://host:8181: INTERNAL_ADDR names no host at which \
                          other instances could reach this one";
            found.refuse_if(self.internal_addr.ip().is_unspecified(), &["INTERNAL_URL", "INTERNAL_ADDR"], advice);
            return found;
        };
        let advice =
            "INTERNAL_URL must begin with https://, because TLS_CERT_FILE makes the internal listener serve TLS";
        found.refuse_if(self.listeners.has_tls() && !url.is_secure(), &["INTERNAL_URL", "TLS_CERT_FILE"], advice);
        let is_allowed = self.peer_urls.as_ref().is_none_or(|allowed| allowed.allow(url.as_str()));
        let advice = "PEER_URLS does not allow INTERNAL_URL, so other instances with this list would not reach this one: \
                      add it, and give all instances the same list";
        found.refuse_if(!is_allowed, &["PEER_URLS", "INTERNAL_URL"], advice);
        found
    }

    /// Returns the settings that all services of the log must agree on. `partitions` is the topic's actual number.
    pub(crate) fn shared(&self, partitions: u32) -> Settings {
        let told = Settings::default().with_secs(settings::IDEMPOTENCY_WINDOW_SECS, self.window);
        told.with(settings::PARTITIONS, partitions)
    }
}

/// Reads the settings of the log's topic.
pub fn topic(env: &Env) -> Result<LogTopic, EnvError> {
    Ok(LogTopic {
        // `EVENTS_TOPIC`, default `events`: name of the log's topic. Agrees with the projectors.
        name: env.or("EVENTS_TOPIC", "events".to_owned())?,
        // `EVENTS_PARTITIONS`: number of the topic's partitions. Default: the existing number, or 12 in a new log.
        // Agrees with the topic.
        partitions: env.optional("EVENTS_PARTITIONS")?,
        // `EVENTS_REPLICATION`, default 1: minimum number of copies of the topic, which may have more.
        replication: env.or("EVENTS_REPLICATION", 1)?,
        // `EVENTS_MIN_ISR`, default 1: minimum `min.insync.replicas` of the topic, which may have more.
        min_isr: env.or("EVENTS_MIN_ISR", 1)?,
    })
}

/// Reads `LOG_EXCEPTION_KEYS`. `None` if no keys are honoured.
pub(crate) fn exception_keys(env: &Env) -> Result<Option<Keys>, EnvError> {
    let unfit =
        |_| EnvError::Unfit { name: "LOG_EXCEPTION_KEYS".to_owned(), reason: "it is not a list of public keys" };
    env.optional_secret("LOG_EXCEPTION_KEYS")?.map(|keys| keys.expose().parse().map_err(unfit)).transpose()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A number of producers, 1 to 8.
struct Producers(usize);

impl fmt::Display for Producers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Producers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.parse().map_err(|_| "it is not a number".to_owned())?;
        if (1..=8).contains(&count) { Ok(Self(count)) } else { Err("it is not 1 to 8".to_owned()) }
    }
}

/// The partitions that an instance wants to own.
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
    use chassis::reference;

    use super::*;

    #[test]
    fn the_reference_lists_every_setting() {
        let env = Env::from([("SERVICE_TOKEN", "0123456789abcdef"), ("LOG_EXCEPTION_SIGNING_KEY", "a key")]);
        chassis::telemetry::init_logs(&env).unwrap();
        Config::from_env(&env).unwrap();
        crate::exceptions::signing_key(&env).unwrap();
        reference::check_settings("command-api", &env, &[include_str!("config.rs"), include_str!("exceptions.rs")]);
    }

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
        assert!(error.contains("INTERNAL_URL must be set"), "{error}");
        let named = settings.into_iter().chain([("INTERNAL_URL", "http://commands-1:8181"), ("PLAINTEXT", "allowed")]);
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
        std::fs::write(&file, "postgres://hidden-in-a-file\n").unwrap();
        let env = ["POSTGRES_URL_FILE", "SERVICE_TOKEN_FILE"].map(|name| (name, file.as_os_str()));
        let config = Config::from_env(&Env::from(env)).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(config.postgres.is_some());
        assert_eq!(config.service_token.sent().expose(), "postgres://hidden-in-a-file");
        assert!(!format!("{config:?}").contains("hidden"));
    }
}
