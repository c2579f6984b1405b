//! The size of a stack: the requested one, the one that its data was created with, and the one that follows from both.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::edge::access_log;
use crate::edge::limits::Limits;
use crate::edge::origins::Origins;
use crate::layout::{Layout, MAX_INSTANCES};
use crate::postgres;

/// The use for which the servers are tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Use,
    /// Tests start the servers often, use them briefly and discard their data.
    Tests,
}

/// Requested size of a stack. Sizes that the existing data determines keep their value from one start to the next.
#[derive(Debug, Clone, Args)]
pub struct Wanted {
    /// Number of Kafka brokers: 1, or 3 with three replicas of each record, two of which acknowledge it
    /// [default: that of the existing data, else 1]
    #[arg(long, value_parser = brokers)]
    brokers: Option<u16>,
    /// Number of partitions of the log; that of existing data changes by `grow` alone
    /// [default: that of the existing data, else 12]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    partitions: Option<u16>,
    /// Run Redis as a cluster of three masters with a replica each instead of one server
    /// [default: as in the previous start, else false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    redis_cluster: Option<bool>,
    /// Use TLS and passwords between all parts, and for clients [default: as the existing data, else false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    secure: Option<bool>,
    /// Number of command-api instances, which share the partitions
    #[arg(long, default_value_t = INSTANCES, value_parser = instances())]
    command_apis: u16,
    /// Number of query-api instances
    #[arg(long, default_value_t = INSTANCES, value_parser = instances())]
    query_apis: u16,
    /// Number of projectors, which share the partitions
    #[arg(long, default_value_t = INSTANCES, value_parser = instances())]
    projectors: u16,
    /// Cores that each instance of a service may use, e.g. 0.25 [default: all]
    #[arg(long, value_parser = millicores, value_name = "CORES")]
    cores: Option<u32>,
    /// Seconds within which a confirmed order must be paid
    #[arg(long, default_value_t = PAYMENT_WINDOW_SECS, value_parser = clap::value_parser!(u32).range(1..))]
    payment_window: u32,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    origins: Origins,
    /// Lines of the access log that each worker of the edge writes a second, for answers and as many for refusals; in a
    /// rush one line stands for a hundred requests beyond that, and 0 switches the log off
    #[arg(long, default_value_t = access_log::LINES, value_name = "LINES", value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    access_log: u32,
    /// Share of the requests without a `traceparent` that get one at the edge
    #[arg(long, default_value_t = access_log::TRACED_PERCENT, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(..=100))]
    traced: u8,
    /// Also start Prometheus with the alerts, and Alertmanager
    #[arg(long)]
    observe: bool,
    /// Start only Kafka, Postgres and Redis
    #[arg(long, hide = true)]
    pub(crate) servers_only: bool,
    /// Start the services without building them first
    #[arg(long, hide = true)]
    pub as_built: bool,
}

/// Default number of instances of each service, enough to show shared partitions and takeovers.
const INSTANCES: u16 = 2;
/// Default payment window, equal to the projector's own default.
pub const PAYMENT_WINDOW_SECS: u32 = 600;

impl Wanted {
    /// Returns a request for one instance of each service, each with this share of a core, built before unless they are
    /// to run as they were built.
    pub fn confined(millicores: u32, as_built: bool) -> Self {
        Self { cores: Some(millicores), as_built, ..Self::one_of_each() }
    }

    /// Returns a request for one instance of each service, with the sizes of the existing data.
    pub fn one_of_each() -> Self {
        Self { command_apis: 1, query_apis: 1, projectors: 1, ..Self::default() }
    }

    /// Returns the request for a log with this number of partitions.
    #[must_use]
    pub(crate) fn for_log(self, partitions: u16) -> Self {
        Self { partitions: Some(partitions), ..self }
    }
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            brokers: None,
            partitions: None,
            redis_cluster: None,
            secure: None,
            command_apis: INSTANCES,
            query_apis: INSTANCES,
            projectors: INSTANCES,
            cores: None,
            payment_window: PAYMENT_WINDOW_SECS,
            limits: Limits::default(),
            origins: Origins::default(),
            access_log: access_log::LINES,
            traced: access_log::TRACED_PERCENT,
            observe: false,
            servers_only: false,
            as_built: false,
        }
    }
}

/// The size of a stack after defaults and existing data are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    pub brokers: u16,
    pub partitions: u16,
    /// Set if the log was grown to this number of partitions. Its topic, its database and its prefix in Redis then have
    /// the number in their names.
    pub grown: bool,
    pub redis_cluster: bool,
    /// Set if all parts use TLS and passwords.
    pub secure: bool,
    pub command_apis: u16,
    pub query_apis: u16,
    pub projectors: u16,
    /// Thousandths of a core that each instance of a service may use; `None` for all cores.
    pub millicores: Option<u32>,
    pub payment_window_secs: u32,
    pub limits: Limits,
    pub origins: Origins,
    /// Lines of the access log a second and worker, before lines are left out.
    pub access_log: u32,
    /// Share of the requests without a trace that get one, in percent.
    pub traced_percent: u8,
    /// Set if Prometheus and Alertmanager run as well.
    pub observe: bool,
    pub servers_only: bool,
    pub as_built: bool,
}

/// Sizes that the data of a state directory was created with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Fixed {
    brokers: u16,
    partitions: u16,
    /// Remembered as a default only; it may change, because Redis holds nothing that cannot be rebuilt.
    #[serde(default)]
    redis_cluster: bool,
    /// The accounts of a secured stack are created with its data.
    #[serde(default)]
    secure: bool,
    #[serde(default)]
    grown: bool,
}

impl Size {
    /// Returns the scheme of the URLs of the services and of the edge.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// Returns the size of this stack once its log has grown to a number of partitions.
    pub(crate) fn grown_to(&self, partitions: u16) -> Self {
        Self { partitions, grown: true, ..self.clone() }
    }

    /// Returns the topic of the log.
    pub(crate) fn topic(&self) -> String {
        self.of_log("events", "-")
    }

    pub(crate) fn database(&self) -> String {
        self.of_log(postgres::OWNER, "_")
    }

    pub(crate) fn redis_prefix(&self) -> String {
        self.of_log("st", "")
    }

    fn of_log(&self, name: &str, between: &str) -> String {
        if self.grown { format!("{name}{between}{}", self.partitions) } else { name.to_owned() }
    }

    pub fn decide(layout: &Layout, wanted: &Wanted) -> Result<Self> {
        let path = fixed_path(layout);
        let fixed = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?,
            Err(_) => None,
        };
        let size = size(wanted, fixed)?;
        size.keep(layout)?;
        Ok(size)
    }

    /// Takes over the number of partitions that the log has grown to since the stack was started.
    pub(crate) fn follow_growth(&mut self, layout: &Layout) {
        let fixed = fs::read(fixed_path(layout)).ok().and_then(|text| serde_json::from_slice::<Fixed>(&text).ok());
        if let Some(fixed) = fixed {
            (self.partitions, self.grown) = (fixed.partitions, fixed.grown);
        }
    }

    /// Stores what later starts must know of the data.
    pub(crate) fn keep(&self, layout: &Layout) -> Result<()> {
        let Self { brokers, partitions, redis_cluster, secure, grown, .. } = *self;
        let (path, now) = (fixed_path(layout), Fixed { brokers, partitions, redis_cluster, secure, grown });
        let now = serde_json::to_vec(&now)?;
        // Commands that run at the same time read it: it never changes without a reason, and never has a part of itself.
        if fs::read(&path).is_ok_and(|kept| kept == now) {
            return Ok(());
        }
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let replaced = fs::write(&new, now).and_then(|()| fs::rename(&new, &path));
        replaced.with_context(|| format!("cannot write {}", path.display()))
    }
}

fn size(wanted: &Wanted, fixed: Option<Fixed>) -> Result<Size> {
    let brokers = wanted.brokers.or(fixed.map(|fixed| fixed.brokers)).unwrap_or(1);
    let partitions = wanted.partitions.or(fixed.map(|fixed| fixed.partitions)).unwrap_or(12);
    let redis_cluster = wanted.redis_cluster.or(fixed.map(|fixed| fixed.redis_cluster)).unwrap_or(false);
    let secure = wanted.secure.or(fixed.map(|fixed| fixed.secure)).unwrap_or(false);
    let grown = fixed.is_some_and(|fixed| fixed.grown);
    let own = (brokers, partitions, secure);
    if let Some(fixed) = fixed.filter(|fixed| (fixed.brokers, fixed.partitions, fixed.secure) != own) {
        bail!(
            "the existing data was created with --brokers {} --partitions {} --secure {}; omit these flags to keep it, \
             or discard it with --fresh",
            fixed.brokers,
            fixed.partitions,
            fixed.secure
        );
    }
    if wanted.command_apis > partitions {
        bail!("--command-apis {} exceeds the number of partitions, {partitions}", wanted.command_apis);
    }
    let Wanted {
        command_apis,
        query_apis,
        projectors,
        cores: millicores,
        payment_window: payment_window_secs,
        access_log,
        traced: traced_percent,
        observe,
        servers_only,
        as_built,
        ..
    } = *wanted;
    let (limits, origins) = (wanted.limits.clone(), wanted.origins.clone());
    Ok(Size {
        brokers,
        partitions,
        grown,
        redis_cluster,
        secure,
        command_apis,
        query_apis,
        projectors,
        millicores,
        payment_window_secs,
        limits,
        origins,
        access_log,
        traced_percent,
        observe,
        servers_only,
        as_built,
    })
}

fn fixed_path(layout: &Layout) -> PathBuf {
    layout.data().join("made-for.json")
}

fn instances() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=i64::from(MAX_INSTANCES))
}

/// Parses cores into thousandths of one.
fn millicores(text: &str) -> Result<u32, String> {
    let cores = text.parse().ok().filter(|cores: &f64| (0.05..=1000.0).contains(cores));
    // A cast of a value within these bounds loses nothing but fractions.
    cores.map(|cores| (cores * 1000.0) as u32).ok_or_else(|| String::from("must be a number of cores from 0.05 on"))
}

fn brokers(text: &str) -> Result<u16, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err(String::from("must be 1 or 3")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(brokers: Option<u16>, partitions: Option<u16>) -> Wanted {
        Wanted { brokers, partitions, ..Wanted::default() }
    }

    #[test]
    fn data_keeps_the_size_that_it_was_made_for() {
        let fixed = Some(Fixed { brokers: 3, partitions: 6, redis_cluster: true, secure: true, grown: true });
        let kept = size(&wanted(None, None), fixed).unwrap();
        assert_eq!((kept.brokers, kept.partitions, kept.redis_cluster, kept.secure), (3, 6, true, true));
        assert!(kept.grown);
        assert!(size(&Wanted { secure: Some(false), ..wanted(None, None) }, fixed).is_err());
        assert!(size(&wanted(Some(3), Some(6)), fixed).is_ok());
        assert!(size(&wanted(Some(1), None), fixed).is_err());
        assert!(size(&wanted(None, Some(12)), fixed).is_err());
    }

    #[test]
    fn a_stack_follows_the_growth_of_its_log() {
        let state = std::env::temp_dir().join(format!("stack-growth-{}", std::process::id()));
        let layout = Layout::new(Some(&state), None).unwrap();
        layout.create().unwrap();
        let mut started = Size::decide(&layout, &wanted(None, None)).unwrap();
        Size { partitions: 48, grown: true, ..started.clone() }.keep(&layout).unwrap();
        started.follow_growth(&layout);
        assert_eq!((started.partitions, started.grown), (48, true));
        assert_eq!(Size::decide(&layout, &wanted(None, None)).unwrap(), started);
        fs::remove_dir_all(&state).unwrap();
    }

    #[test]
    fn whoever_reads_the_kept_size_finds_all_of_it() {
        let state = std::env::temp_dir().join(format!("stack-kept-{}", std::process::id()));
        let layout = Layout::new(Some(&state), None).unwrap();
        layout.create().unwrap();
        let size = Size::decide(&layout, &wanted(None, None)).unwrap();
        std::thread::scope(|scope| {
            let kept = scope.spawn(|| {
                (0..2000).for_each(|n| Size { partitions: 12 + n % 2, ..size.clone() }.keep(&layout).unwrap());
            });
            while !kept.is_finished() {
                let kept = fs::read(fixed_path(&layout)).unwrap();
                assert!(serde_json::from_slice::<Fixed>(&kept).is_ok(), "{kept:?}");
            }
        });
        fs::remove_dir_all(&state).unwrap();
    }

    #[test]
    fn an_instance_without_a_partition_is_refused() {
        assert!(size(&wanted(None, Some(1)), None).is_err());
        assert_eq!(size(&wanted(None, None), None).unwrap().partitions, 12);
    }
}
