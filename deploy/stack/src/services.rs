//! Builds, prepares and starts the services of this workspace.

use std::collections::BTreeMap;
use std::iter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::process::Signal;

use crate::layout::{Layout, MAX_INSTANCES, root};
use crate::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use crate::probe::Probe;
use crate::size::Size;
use crate::{kafka, postgres, redis};

pub const PACKAGES: [&str; 3] = ["command-api", "projector", "query-api"];
/// Program that generates load, of the crate `tests/load`.
pub(crate) const LOAD: &str = "load";
const BUILD: &str = "build";
const TOPIC: &str = "create-topic";
const EXCEPTION_KEY: &str = "exception-key";
const TABLES: &str = "migrate";
const SETTINGS: &str = "settings";
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
    let bins = PACKAGES.iter().chain([&LOAD]).flat_map(|program| ["--bin", program]);
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
    let token = layout.secret("service-token")?;
    parts.extend((1..=size.command_apis).map(|instance| {
        let launch = Launch::new(binaries.join("command-api"), [""; 0])
            .env("HTTP_ADDR", local(layout.ports.command_http(instance)))
            .env("INTERNAL_ADDR", local(layout.ports.command_internal(instance)))
            .env("PEER_URLS", internal_urls(layout, MAX_INSTANCES))
            .env("ADMIN_ADDR", local(layout.ports.command_admin(instance)))
            .env("SERVICE_TOKEN", token.as_str());
        let internal = ("internal", layout.ports.command_internal(instance));
        let http = ("http", layout.ports.command_http(instance));
        let ports = [http, internal, ("admin", layout.ports.command_admin(instance))];
        common.service("command-api", instance, size.origins.add_to(launch), ports)
    }));
    parts.extend((1..=size.query_apis).map(|instance| {
        let launch = Launch::new(binaries.join("query-api"), [""; 0])
            .env("HTTP_ADDR", local(layout.ports.query_http(instance)))
            .env("PUBLIC_URL", format!("http://{}", local(layout.ports.edge())))
            .env("ADMIN_ADDR", local(layout.ports.query_admin(instance)));
        let http = ("http", layout.ports.query_http(instance));
        let ports = [http, ("admin", layout.ports.query_admin(instance))];
        common.service("query-api", instance, size.origins.add_to(launch), ports)
    }));
    parts.extend((1..=size.projectors).map(|instance| {
        let admin = layout.ports.projector_admin(instance);
        let launch = Launch::new(binaries.join("projector"), [""; 0])
            .env("ADMIN_ADDR", local(admin))
            .env("REACTOR_COMMAND_URLS", internal_urls(layout, size.command_apis))
            .env("PAYMENT_WINDOW_SECS", size.payment_window_secs.to_string())
            .env("SERVICE_TOKEN", token.as_str());
        common.service("projector", instance, launch, [("admin", admin)])
    }));
    Ok(parts)
}

/// Returns the URLs of command-api's internal listeners, separated by commas.
fn internal_urls(layout: &Layout, instances: u16) -> String {
    let url = |instance| format!("http://{}", local(layout.ports.command_internal(instance)));
    (1..=instances).map(url).collect::<Vec<_>>().join(",")
}

/// Configuration that all services share: server addresses and the shape of the log.
struct Common {
    kafka: String,
    partitions: u16,
    copies: u16,
    postgres: String,
    redis: String,
    /// Name of the part that must be up before Redis can be used.
    redis_part: &'static str,
    /// Path of the private key that signs log exceptions; the public key is in the same path with `.pub` appended.
    exception_key: String,
}

impl Common {
    fn of(layout: &Layout, size: &Size) -> Result<Self> {
        Ok(Self {
            kafka: kafka::bootstrap(layout.ports, size.brokers),
            partitions: size.partitions,
            copies: size.brokers.min(3),
            postgres: postgres::url(layout)?,
            redis: redis::url(layout, size.redis_cluster),
            redis_part: redis::needed(size.redis_cluster),
            exception_key: layout.state.join("log-exception-key").to_string_lossy().into_owned(),
        })
    }

    fn add_to(&self, launch: Launch) -> Launch {
        launch
            .env("KAFKA_BROKERS", self.kafka.as_str())
            .env("EVENTS_PARTITIONS", self.partitions.to_string())
            .env("EVENTS_REPLICATION", self.copies.to_string())
            .env("EVENTS_MIN_ISR", self.copies.div_ceil(2).to_string())
            .env("POSTGRES_URL", self.postgres.as_str())
            .env("REDIS_URL", self.redis.as_str())
            .env("LOG_EXCEPTION_KEYS_FILE", format!("{}.pub", self.exception_key))
    }

    /// Returns the part of a service instance. The last of `ports` is the admin listener's.
    fn service<const N: usize>(
        &self,
        kind: &str,
        instance: u16,
        launch: Launch,
        ports: [(&'static str, u16); N],
    ) -> Part {
        Part {
            name: format!("{kind}-{instance}"),
            launch: self.add_to(launch),
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
    Part::task(TOPIC, common.add_to(launch)).needing((1..=brokers).map(kafka::name))
}

fn exception_key(binaries: &Path, common: &Common) -> Part {
    let launch = Launch::new(binaries.join("command-api"), ["exception-key", &common.exception_key]);
    Part::task(EXCEPTION_KEY, launch)
}

fn migrate(binaries: &Path, common: &Common) -> Part {
    let launch = Launch::new(binaries.join("projector"), ["migrate"]);
    Part::task(TABLES, common.add_to(launch)).needing([postgres::NAME])
}

/// Returns a task that stores the payment window of this start in the database, for all services.
fn settings(binaries: &Path, common: &Common, size: &Size) -> Part {
    let window = size.payment_window_secs.to_string();
    let launch = Launch::new(binaries.join("projector"), ["settings", "set", "PAYMENT_WINDOW_SECS", &window]);
    Part::task(SETTINGS, common.add_to(launch)).needing([TABLES])
}

/// Returns the launch of `command-api except` against a running stack.
pub(crate) fn except_tool(layout: &Layout, size: &Size, profile: Profile, args: &[String]) -> Result<Launch> {
    let common = Common::of(layout, size)?;
    let args = ["except".to_owned()].iter().chain(args).cloned().collect::<Vec<_>>();
    let launch = Launch::new(binaries(profile)?.join("command-api"), args).env("LOG", "warn").env("LOG_FORMAT", "text");
    Ok(common.add_to(launch).env("LOG_EXCEPTION_SIGNING_KEY_FILE", common.exception_key.as_str()))
}

/// Returns the launch of a projector subcommand against a running stack.
pub fn projector_tool(layout: &Layout, size: &Size, profile: Profile, args: &[&str]) -> Result<Launch> {
    let args = args.iter().map(|arg| (*arg).to_owned());
    let launch = Launch::new(binaries(profile)?.join("projector"), args).env("LOG", "warn").env("LOG_FORMAT", "text");
    Ok(Common::of(layout, size)?.add_to(launch))
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}
