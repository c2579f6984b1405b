//! Builds, prepares and starts the services of this workspace.

mod grow_tools;
mod archive_tools;

use std::collections::BTreeMap;
use std::iter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::accounts::Account;
use crate::certificates;
use crate::layout::{Layout, MAX_INSTANCES, STAFF_TOKEN, root};
use crate::part::{Launch, OnDeath, Output, Part, Role, Stop, Tier};
use crate::probe::Probe;
use crate::provision::Tools;
use crate::size::Size;
use crate::{accounts, cores, kafka, postgres, redis, up};

pub(crate) use archive_tools::{archive_tool, restore};
pub(crate) use grow_tools::GrowTools;

pub const PACKAGES: [&str; 3] = ["command-api", "projector", "query-api"];

/// A service, of which there may be several instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    CommandApi,
    QueryApi,
    Projector,
}

impl Service {
    /// All services, in the order in which their instances are shown.
    pub const ALL: [Self; 3] = [Self::CommandApi, Self::QueryApi, Self::Projector];

    /// Returns the name of the package, which is that of its program.
    pub fn name(self) -> &'static str {
        match self {
            Self::CommandApi => "command-api",
            Self::QueryApi => "query-api",
            Self::Projector => "projector",
        }
    }

    pub fn instance_name(self, number: u16) -> String {
        format!("{}-{number}", self.name())
    }

    /// Returns the service and the number of an instance of this name; `None` if the name is of something else.
    pub fn of_instance(name: &str) -> Option<(Self, u16)> {
        let (service, number) = name.rsplit_once('-')?;
        let service = Self::ALL.into_iter().find(|known| known.name() == service)?;
        Some((service, number.parse().ok()?))
    }

    fn instances_of(self, size: &Size) -> u16 {
        match self {
            Self::CommandApi => size.command_apis,
            Self::QueryApi => size.query_apis,
            Self::Projector => size.projectors,
        }
    }
}

/// Program that generates load, of the crate `tests/load`.
pub(crate) const LOAD: &str = "load";
/// Program of the image of the edge, of this crate.
const EDGE: &str = "edge";
const BUILD: &str = "build";
const TOPIC: &str = "create-topic";
const EXCEPTION_KEY: &str = "exception-key";
const TABLES: &str = "migrate";
const SETTINGS: &str = "settings";
const RECOVER: &str = "recover";
/// File with the token of the internal listeners.
const TOKEN: &str = "service-token";
/// Stop signal of a service, and a grace period longer than the 10 s that a service allows for its own shutdown.
const STOP: Stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(12) };

/// Cargo profile with which the services are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Quick to build, slow to run; the tests use it
    Dev,
    /// Optimized, but for what takes long to build
    Quick,
    /// Optimized as far as possible; the benches use it
    Release,
}

impl Profile {
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Quick => "quick",
            Self::Release => "release",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Quick => "quick",
            Self::Release => "release",
        }
    }
}

/// Returns cargo's output folder for a profile, a sibling of the folder that holds this program.
pub fn binaries(profile: Profile) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot locate this program's executable")?;
    let target = own.ancestors().nth(2).context("this program is not in a target folder")?;
    Ok(target.join(profile.folder()))
}

pub fn build(profile: Profile) -> Part {
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    cargo_build(["--profile", profile.name()].into_iter().chain(packages))
}

/// Returns a task that builds the programs together with the tests, so that shared crates are compiled once, with one
/// set of features.
pub(crate) fn build_for_tests() -> Part {
    // Not `--bins`, which would replace this program's executable while it runs.
    let bins = PACKAGES.iter().chain([&LOAD, &EDGE]).flat_map(|program| ["--bin", program]);
    cargo_build(["--workspace", "--tests"].into_iter().chain(bins))
}

/// Returns the cargo that runs this program.
pub(crate) fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Returns a task that runs `cargo build`, with a progress bar in its log, which the supervisor shows in one line.
fn cargo_build<'a>(args: impl IntoIterator<Item = &'a str>) -> Part {
    let mut launch = Launch::new(cargo(), iter::once("build").chain(args))
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "100")
        .env("CARGO_TERM_COLOR", "never");
    launch.dir = Some(root().to_owned());
    launch.env_of_caller = true;
    Part::task(BUILD, launch).described("compiling; the first time takes minutes")
}

pub(crate) fn parts(layout: &Layout, size: &Size, profile: Profile) -> Result<Vec<Part>> {
    let binaries = binaries(profile)?;
    let common = Common::of(layout, size)?;
    let build = (!size.as_built).then(|| build(profile));
    let built = build.as_ref().map(|_| BUILD);
    let topic = create_topic(&binaries, &common, size.brokers).needing(built);
    let mut parts: Vec<_> = build.into_iter().chain([topic, migrate(&binaries, &common).needing(built)]).collect();
    parts.push(settings(&binaries, &common, size));
    parts.push(exception_key(&binaries, &common).needing(built));
    for service in Service::ALL {
        let instances =
            (1..=service.instances_of(size)).map(|number| instance(layout, size, &binaries, service, number));
        parts.extend(instances.collect::<Result<Vec<_>>>()?);
    }
    Ok(parts)
}

/// Returns the tasks that fill the tables from the log, once the servers are up.
pub(crate) fn recovery(
    layout: &Layout,
    tools: &Tools,
    size: &Size,
    profile: Profile,
    servers: &[String],
) -> Result<Vec<Part>> {
    const DATABASE: &str = "create-database";
    let (binaries, common) = (binaries(profile)?, Common::of(layout, size)?);
    let build = (!size.as_built).then(|| build(profile));
    let built = build.as_ref().map(|_| BUILD);
    let database = Part::task(DATABASE, postgres::creation(layout, &tools.postgres.join("psql"), size)?);
    let tables = migrate(&binaries, &common).needing(built).needing([DATABASE]);
    let window = size.payment_window_secs.to_string();
    let mut launch = projector_tool_of(&binaries, layout, size, &["recover"])?.env("PAYMENT_WINDOW_SECS", window);
    launch.output = Output::Caller;
    let recover = Part::task(RECOVER, launch).needing([SETTINGS]);
    let tasks = [database.needing(servers), tables, settings(&binaries, &common, size), recover.needing(servers)];
    Ok(build.into_iter().chain(tasks).collect())
}

/// Returns the part of one instance of a service, with the program of this name in the folder `binaries`.
pub(crate) fn instance(layout: &Layout, size: &Size, binaries: &Path, service: Service, number: u16) -> Result<Part> {
    let (common, ports) = (Common::of(layout, size)?, layout.ports);
    layout.secret(TOKEN)?;
    let token = layout.state.join(TOKEN).to_string_lossy().into_owned();
    let mut launch = common.certified(service, Launch::new(binaries.join(service.name()), [""; 0]));
    if let Some(millicores) = size.millicores {
        launch.group = Some(cores::confine(layout, &service.instance_name(number), millicores)?);
    }
    Ok(match service {
        Service::CommandApi => {
            let (http, internal) = (ports.command_http(number), ports.command_internal(number));
            let admin = ports.command_admin(number);
            let launch = launch
                .env("HTTP_ADDR", local(http))
                .env("INTERNAL_ADDR", local(internal))
                .env("PEER_URLS", internal_urls(layout, size))
                .env("ADMIN_ADDR", local(admin))
                .env("SERVICE_TOKEN_FILE", token);
            let launch = if size.secure {
                layout.secret(STAFF_TOKEN)?;
                launch.env("STAFF_TOKEN_FILE", layout.state.join(STAFF_TOKEN).to_string_lossy())
            } else {
                launch
            };
            let ports = [("http", http), ("internal", internal), ("admin", admin)];
            common.service(service, number, size.origins.add_to(launch), ports)
        }
        Service::QueryApi => {
            let (http, admin) = (ports.query_http(number), ports.query_admin(number));
            let launch = launch
                .env("HTTP_ADDR", local(http))
                .env("PUBLIC_URL", up::url(layout, size.secure))
                .env("ADMIN_ADDR", local(admin));
            common.service(service, number, size.origins.add_to(launch), [("http", http), ("admin", admin)])
        }
        Service::Projector => {
            let admin = ports.projector_admin(number);
            let launch = launch
                .env("ADMIN_ADDR", local(admin))
                .env("REACTOR_COMMAND_URLS", internal_urls(layout, size))
                .env("PAYMENT_WINDOW_SECS", size.payment_window_secs.to_string())
                .env("SERVICE_TOKEN_FILE", token);
            common.service(service, number, launch, [("admin", admin)])
        }
    })
}

/// Returns the URLs of the internal listeners of all possible instances of command-api, separated by commas.
fn internal_urls(layout: &Layout, size: &Size) -> String {
    let url = |instance| format!("{}://{}", size.scheme(), local(layout.ports.command_internal(instance)));
    (1..=MAX_INSTANCES).map(url).collect::<Vec<_>>().join(",")
}

/// Configuration that all services share: server addresses and the shape of the log.
struct Common {
    kafka: String,
    topic: String,
    partitions: u16,
    copies: u16,
    postgres: String,
    redis: String,
    redis_prefix: String,
    /// Name of the part that must be up before Redis can be used.
    redis_part: &'static str,
    /// Path of the private key that signs log exceptions; the public key is in the same path with `.pub` appended.
    exception_key: String,
    /// Folder of a secured stack's certificates.
    certificates: Option<PathBuf>,
    /// Layout and size of a secured stack.
    secured: Option<(Layout, Size)>,
}

impl Common {
    fn of(layout: &Layout, size: &Size) -> Result<Self> {
        if size.secure {
            accounts::create_passwords(layout)?;
        }
        Ok(Self {
            kafka: kafka::bootstrap(layout.ports, size.brokers),
            topic: size.topic(),
            partitions: size.partitions,
            copies: size.brokers.min(3),
            postgres: postgres::url_of(layout, &size.database())?,
            redis: redis::url(layout, size.redis_cluster),
            redis_prefix: size.redis_prefix(),
            redis_part: redis::needed(size.redis_cluster),
            exception_key: layout.state.join("log-exception-key").to_string_lossy().into_owned(),
            certificates: size.secure.then(|| layout.certificates()),
            secured: size.secure.then(|| (layout.clone(), size.clone())),
        })
    }

    /// Returns the settings of an account that differ from those for a log with another number of partitions.
    fn of_log(&self, account: Account) -> [(&'static str, String); 4] {
        [
            ("EVENTS_TOPIC", self.topic.clone()),
            ("EVENTS_PARTITIONS", self.partitions.to_string()),
            ("POSTGRES_URL", self.postgres(account)),
            ("REDIS_PREFIX", self.redis_prefix.clone()),
        ]
    }

    /// Returns the URL of the database, for the account if the stack is secured.
    fn postgres(&self, account: Account) -> String {
        match &self.secured {
            Some((layout, size)) => postgres::secure_url(layout, account, &size.database()),
            None => self.postgres.clone(),
        }
    }

    /// Returns the launch with what its process needs to reach the servers, as the account if the stack is secured.
    fn add_to(&self, launch: Launch, account: Account) -> Launch {
        let launch = self.of_log(account).into_iter().fold(launch, |launch, (name, value)| launch.env(name, value));
        let launch = match &self.secured {
            Some((layout, size)) => account.add_to(launch, layout, size),
            None => launch.env("REDIS_URL", self.redis.as_str()),
        };
        launch
            .env("KAFKA_BROKERS", self.kafka.as_str())
            .env("EVENTS_REPLICATION", self.copies.to_string())
            .env("EVENTS_MIN_ISR", self.copies.div_ceil(2).to_string())
            .env("LOG_EXCEPTION_KEYS_FILE", format!("{}.pub", self.exception_key))
    }

    /// Adds the certificate of a service's listeners, if the stack is secured.
    fn certified(&self, service: Service, launch: Launch) -> Launch {
        let Some(folder) = &self.certificates else { return launch };
        let pair = certificates::pair(folder, service.name());
        let launch = launch.env("TLS_CERT_FILE", pair.certificate.to_string_lossy());
        launch.env("TLS_KEY_FILE", pair.key.to_string_lossy())
    }

    /// Returns the part of a service instance. The last of `ports` is the admin listener's.
    fn service<const N: usize>(
        &self,
        service: Service,
        instance: u16,
        launch: Launch,
        ports: [(&'static str, u16); N],
    ) -> Part {
        Part {
            name: service.instance_name(instance),
            launch: self.add_to(launch, service.into()),
            role: Role::Server {
                ready: Probe::Http { port: ports[N - 1].1, path: "/readyz" },
                stop: STOP,
                on_death: OnDeath::Restart,
                tier: Tier::Service,
            },
            needs: [TOPIC, SETTINGS, EXCEPTION_KEY, self.redis_part].map(String::from).to_vec(),
            ports: BTreeMap::from(ports),
        }
    }
}

fn create_topic(binaries: &Path, common: &Common, brokers: u16) -> Part {
    let launch = Launch::new(binaries.join("command-api"), ["create-topic"]);
    let topic = Part::task(TOPIC, common.add_to(launch, Account::Owner)).needing((1..=brokers).map(kafka::name));
    topic.needing(common.secured.as_ref().map(|_| kafka::RULES))
}

fn exception_key(binaries: &Path, common: &Common) -> Part {
    let launch = Launch::new(binaries.join("command-api"), ["exception-key", &common.exception_key]);
    Part::task(EXCEPTION_KEY, launch)
}

fn migrate(binaries: &Path, common: &Common) -> Part {
    let launch = Launch::new(binaries.join("projector"), ["migrate"]);
    Part::task(TABLES, common.add_to(launch, Account::Owner)).needing([postgres::NAME])
}

/// Returns a task that stores the payment window of this start in the database, for all services.
fn settings(binaries: &Path, common: &Common, size: &Size) -> Part {
    let window = size.payment_window_secs.to_string();
    let launch = Launch::new(binaries.join("projector"), ["settings", "set", "PAYMENT_WINDOW_SECS", &window]);
    Part::task(SETTINGS, common.add_to(launch, Account::Owner)).needing([TABLES])
}

/// Returns the launch of `command-api except` against a running stack.
pub(crate) fn except_tool(layout: &Layout, size: &Size, profile: Profile, args: &[String]) -> Result<Launch> {
    let common = Common::of(layout, size)?;
    let args = ["except".to_owned()].iter().chain(args).cloned().collect::<Vec<_>>();
    let launch = Launch::new(binaries(profile)?.join("command-api"), args).env("LOG", "warn").env("LOG_FORMAT", "text");
    Ok(common.add_to(launch, Account::Owner).env("LOG_EXCEPTION_SIGNING_KEY_FILE", common.exception_key.as_str()))
}

/// Returns the launch of a projector subcommand against a running stack.
pub fn projector_tool(layout: &Layout, size: &Size, profile: Profile, args: &[&str]) -> Result<Launch> {
    projector_tool_of(&binaries(profile)?, layout, size, args)
}

/// Returns the launch of a subcommand of the projector in the folder `binaries`.
pub(crate) fn projector_tool_of(binaries: &Path, layout: &Layout, size: &Size, args: &[&str]) -> Result<Launch> {
    let args = args.iter().map(|arg| (*arg).to_owned());
    let launch = Launch::new(binaries.join("projector"), args).env("LOG", "warn").env("LOG_FORMAT", "text");
    Ok(Common::of(layout, size)?.add_to(launch, Account::Owner))
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}
