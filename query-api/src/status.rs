//! The state of the whole system: what is degraded, since when, and what to do. It is made once a second of this
//! instance's own positions, of what all instances report to Postgres, and of the parked records.
//!
//! Invariant: the public answer consists of words of a closed set and of times. Hosts, partitions, numbers and reasons
//! are for operators alone.

mod overview;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chassis::build;
use chassis::clock::now_ms;
use chassis::instance::{self, Reporter, Statements};
use chassis::postgres::PostgresSettings;
use chassis::readiness::Readiness;
use chassis::shutdown::{Shutdown, Tasks};
use chassis::telemetry::with_causes;
use schemas::feeds::FeedId;
use schemas::status::{
    self, CACHE_BEHIND, Finding, INSTANCES_UNKNOWN, LOG_END_UNKNOWN, NOBODY_FOLDS, Observer, PARTITION_WITHOUT_OWNER,
    POSTGRES_UNAVAILABLE, REDIS_UNAVAILABLE, TIER_DOWN, VIEW_BEHIND,
};
use schemas::time::TimeMs;
use tokio::sync::watch;
use tokio_postgres::error::SqlState;

use crate::postgres::StoreError;
use crate::postgres::instances::{Instance, ParkedCount};
use crate::reads::Reads;
use overview::History;
pub(crate) use overview::Overview;

const SERVICE: &str = "query-api";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Age of a report at which its instance counts as gone. Instances report every five seconds.
const GONE_AFTER: Duration = Duration::from_secs(15);
/// Lag at which a view is behind; the alerts have the same.
const BEHIND: Duration = Duration::from_secs(10);

/// The latest overview; `None` until the first look.
pub(crate) type Latest = watch::Receiver<Option<Arc<Overview>>>;

/// The findings of one look.
struct Look {
    own: Instance,
    /// Empty if Postgres does not answer.
    others: Vec<Instance>,
    parked: Vec<ParkedCount>,
    findings: Vec<Finding>,
    views: Vec<ViewLag>,
}

/// Lag of a view behind the log in each server; `None` if that is unknown.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
struct ViewLag {
    view: &'static str,
    redis_secs: Option<f64>,
    postgres_secs: Option<f64>,
}

/// Makes the overviews.
struct Watcher {
    reads: Arc<Reads>,
    readiness: Readiness,
    observer: Observer,
    own_name: String,
}

/// Starts to report about this instance, and to look at all.
pub(crate) fn start(
    postgres: &PostgresSettings,
    admin: SocketAddr,
    reads: &Arc<Reads>,
    readiness: &Readiness,
    tasks: &mut Tasks,
    shutdown: &Shutdown,
) -> anyhow::Result<Latest> {
    let statements = Statements { keep: status::KEEP, remove: status::REMOVE };
    let reporter = Reporter::new(postgres, statements, SERVICE, admin)?;
    let observer = || Observer::new(build::VERSION, build::COMMIT, TimeMs(now_ms()));
    let watcher = || Watcher {
        reads: reads.clone(),
        readiness: readiness.clone(),
        observer: observer(),
        own_name: instance::name(SERVICE, admin),
    };
    let mut reporting = watcher();
    let look = move || reporting.own_report(TimeMs(now_ms())).to_json();
    tasks.spawn("report", reporter.run(look, shutdown.clone()));
    let (sender, latest) = watch::channel(None);
    tasks.spawn("status", watcher().run(sender, shutdown.clone()));
    Ok(latest)
}

impl Watcher {
    async fn run(mut self, sender: watch::Sender<Option<Arc<Overview>>>, shutdown: Shutdown) {
        let mut history = History::default();
        while !shutdown.is_requested() {
            let look = self.look().await;
            sender.send_replace(Some(Arc::new(history.overview(look, TimeMs(now_ms())))));
            shutdown.sleep(LOOK_EVERY).await;
        }
    }

    fn own_report(&mut self, now: TimeMs) -> status::Report {
        let redis = (!self.reads.positions.knows_cache()).then(|| {
            let detail = "this instance does not know what Redis shows, and answers from Postgres";
            Finding::new(REDIS_UNAVAILABLE, "redis", detail)
        });
        self.observer.report(self.readiness.state(), None, redis.into_iter().collect(), now)
    }

    async fn look(&mut self) -> Look {
        let report = self.own_report(TimeMs(now_ms()));
        let own = Instance {
            name: self.own_name.clone(),
            service: SERVICE.to_owned(),
            report: Some(report),
            age: Duration::ZERO,
        };
        let views = self.views();
        let mut findings = Vec::new();
        let (others, parked) = match self.stored().await {
            Ok((others, parked)) => {
                findings.extend(of_instances(&others, self.reads.positions.log().map(|log| log.partitions)));
                (others.into_iter().filter(|instance| instance.name != self.own_name).collect(), parked)
            }
            Err(finding) => {
                findings.push(finding);
                (Vec::new(), Vec::new())
            }
        };
        findings.extend(of_views(&views, self.reads.positions.knows_cache()));
        Look { own, others, parked, findings, views }
    }

    /// Reads what is in Postgres, or returns what is wrong with it.
    async fn stored(&self) -> Result<(Vec<Instance>, Vec<ParkedCount>), Finding> {
        let store = &self.reads.store;
        let read = async { Ok((store.instances().await?, store.parked_counts().await?)) };
        read.await.map_err(|error: StoreError| match &error {
            StoreError::Query(query)
                if matches!(query.code(), Some(&SqlState::UNDEFINED_TABLE | &SqlState::INSUFFICIENT_PRIVILEGE)) =>
            {
                Finding::new(INSTANCES_UNKNOWN, "postgres", "the tables are older: run `projector migrate`")
            }
            _ => Finding::new(POSTGRES_UNAVAILABLE, "postgres", with_causes(&error)),
        })
    }

    fn views(&self) -> Vec<ViewLag> {
        let secs = |progress: Option<crate::positions::Progress>| Some(progress?.behind?.as_secs_f64());
        let lag = |feed: FeedId| {
            let [redis_secs, postgres_secs] = self.reads.positions.progress(feed).map(secs);
            ViewLag { view: feed.name(), redis_secs, postgres_secs }
        };
        FeedId::all().into_iter().map(lag).collect()
    }
}

/// Returns what the reports show together: tiers without an instance, and partitions without an owner.
fn of_instances(instances: &[Instance], partitions: Option<u32>) -> Vec<Finding> {
    let live = |service| instances.iter().filter(move |it| it.service == service && it.age < GONE_AFTER);
    let mut findings = Vec::new();
    if live("projector").next().is_none() {
        findings.push(Finding::new(NOBODY_FOLDS, "projector", "no instance reports"));
    }
    if live("command-api").next().is_none() {
        findings.push(Finding::new(TIER_DOWN, "command-api", "no instance reports"));
    }
    let Some(partitions) = partitions else { return findings };
    let owned: BTreeSet<u32> = live("command-api")
        .filter_map(|instance| instance.report.as_ref()?.owns.as_deref())
        .flat_map(|owns| status::in_ranges(owns, partitions))
        .collect();
    let free = status::ranges((0..partitions).filter(|partition| !owned.contains(partition)));
    if !free.is_empty() {
        let detail = format!("{free} of {partitions} partitions");
        let place = if owned.is_empty() { overview::ALL_PARTITIONS } else { "partitions" };
        findings.push(Finding::new(PARTITION_WITHOUT_OWNER, place, detail));
    }
    findings
}

fn of_views(views: &[ViewLag], knows_cache: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let late = |secs: Option<f64>| secs.filter(|secs| *secs >= BEHIND.as_secs_f64());
    for ViewLag { view, redis_secs, postgres_secs } in views {
        let lags = [(VIEW_BEHIND, "Postgres", postgres_secs), (CACHE_BEHIND, "Redis", redis_secs)];
        findings.extend(lags.into_iter().filter_map(|(what, server, secs)| {
            let secs = late(*secs)?;
            Some(Finding::new(what, *view, format!("{server} lacks records since {secs:.0} s ago")))
        }));
    }
    // Without Redis the end is unknown anyway.
    if knows_cache && views.iter().any(|lag| lag.postgres_secs.is_none()) {
        let detail = "no projector publishes where the log ends, so it is unknown how far the views are";
        findings.push(Finding::new(LOG_END_UNKNOWN, "log", detail));
    }
    findings
}
