//! The bench's own stack, and control over the services that run during a measurement.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use stack::certificates::authority;
use stack::control::{self, Request};
use stack::edge::limits::Limits;
use stack::edge::origins::Origins;
use stack::layout::Layout;
use stack::part::Part;
use stack::plan;
use stack::provision::{self, Tools};
use stack::services::Profile;
use stack::size::{PAYMENT_WINDOW_SECS, Size};
use stack::status::State;
use stack::supervisor::{Supervisor, Words};
use stack::up::Address;
use stack::{logs, process};

use super::{Cancelled, processor_time};
use crate::wire;

/// Time allowed for a takeover of all partitions, much longer than one normally takes.
const OWNED_WITHIN: Duration = Duration::from_secs(60);
/// Time allowed for the views to catch up.
const FOLDED_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
const POLL_VIEWS: Duration = Duration::from_millis(50);
const PARTITIONS: u16 = 12;
const TIMEOUT: Duration = Duration::from_secs(5);
const COMMAND_API: &str = "command-api";
const QUERY_API: &str = "query-api";
const OWNED: &str = "stampede_partition_owned";

/// Numbers of service instances, the kind of Redis, and the protection of the wires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instances {
    pub(super) command_apis: u16,
    pub(super) projectors: u16,
    pub(super) query_apis: u16,
    pub(super) redis_cluster: bool,
    /// Set for TLS and accounts on all wires.
    pub(super) secure: bool,
    /// Set for the services of the profile `dev` as they were built.
    pub(super) as_built: bool,
}

impl Instances {
    pub(super) const NONE: Self =
        Self { command_apis: 0, projectors: 0, query_apis: 0, redis_cluster: false, secure: false, as_built: false };

    /// Returns the numbers that are sufficient for both.
    pub(super) fn or_more(self, other: Self) -> Self {
        Self {
            command_apis: self.command_apis.max(other.command_apis),
            projectors: self.projectors.max(other.projectors),
            query_apis: self.query_apis.max(other.query_apis),
            redis_cluster: self.redis_cluster || other.redis_cluster,
            secure: self.secure || other.secure,
            as_built: self.as_built || other.as_built,
        }
    }
}

/// A running stack.
pub(super) struct Environment<'a> {
    pub(super) layout: &'a Layout,
    pub(super) tools: &'a Tools,
    pub(super) cancelled: &'a Cancelled,
    size: Size,
    agent: ureq::Agent,
}

/// Starts an empty stack with up to `most` instances of each service, modified by `adapt`, calls `play` on it, and
/// stops it.
pub(super) fn on_empty_stack<T>(
    layout: &Layout,
    most: Instances,
    adapt: impl FnOnce(&Layout, &Tools, &mut Vec<Part>) -> Result<()>,
    cancelled: &Cancelled,
    play: impl FnOnce(&Environment<'_>) -> Result<T>,
) -> Result<T> {
    on_empty_stack_of(PARTITIONS, layout, most, adapt, cancelled, play)
}

/// Does the same with a log of another number of partitions.
pub(super) fn on_empty_stack_of<T>(
    partitions: u16,
    layout: &Layout,
    most: Instances,
    adapt: impl FnOnce(&Layout, &Tools, &mut Vec<Part>) -> Result<()>,
    cancelled: &Cancelled,
    play: impl FnOnce(&Environment<'_>) -> Result<T>,
) -> Result<T> {
    layout.create()?;
    let _lock = control::lock(layout)?.context("another bench is already running")?;
    process::end_leftovers(layout);
    layout.clear_data()?;
    logs::rotate(layout);
    let tools = provision::ensure(&layout.log("apt"))?;
    let Instances { command_apis, projectors, query_apis, redis_cluster, secure, as_built } = most;
    // The edge's configuration needs at least one.
    let of_plan = query_apis.max(1);
    let size = Size {
        brokers: 1,
        partitions,
        grown: false,
        redis_cluster,
        secure,
        command_apis,
        query_apis: of_plan,
        projectors,
        millicores: None,
        payment_window_secs: PAYMENT_WINDOW_SECS,
        limits: Limits::default(),
        origins: Origins::default(),
        // The systems that it is compared with have none either.
        access_log: 0,
        traced_percent: 0,
        observe: false,
        servers_only: false,
        as_built,
    };
    let profile = if as_built { Profile::Dev } else { Profile::Release };
    let mut parts = plan::system(layout, &tools, &size, profile)?;
    if query_apis == 0 {
        // Unused here, and never ready without projectors.
        parts.retain(|part| !part.name.starts_with(QUERY_API));
    }
    adapt(layout, &tools, &mut parts)?;
    let supervisor = Supervisor::new(layout.clone(), parts, String::new(), Words::Start)?;
    thread::scope(|scope| {
        let (ready, became_ready) = mpsc::channel();
        let servers = scope.spawn(move || supervisor.run(|_| ready.send(()).unwrap_or_default()));
        let played = became_ready.recv().ok().map(|()| play(&Environment::new(layout, &tools, cancelled, size)?));
        // An error means that the stack is already stopping.
        let _ = control::ask(layout, &Request::Down);
        servers.join().map_err(|_| anyhow!("the supervisor panicked"))??;
        played.context("the stack was stopped before it was ready")?
    })
}

impl<'a> Environment<'a> {
    fn new(layout: &'a Layout, tools: &'a Tools, cancelled: &'a Cancelled, size: Size) -> Result<Self> {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT));
        let authority = size.secure.then(|| authority(&layout.certificates()));
        let config = wire::trusting(config, &Address { url: String::new(), authority })?;
        Ok(Self { layout, tools, cancelled, size, agent: config.build().new_agent() })
    }

    /// Returns the scheme of the URLs of the edge and the services.
    pub(super) fn scheme(&self) -> &'static str {
        if self.size.secure { "https" } else { "http" }
    }

    /// Starts and stops services to match `instances`, and waits until every partition has an owner.
    pub(super) fn set(&self, instances: Instances) -> Result<()> {
        let now = self.states()?;
        let named = |kind: &'static str, wanted: u16, most: u16| {
            (1..=most).map(move |instance| (format!("{kind}-{instance}"), instance <= wanted))
        };
        let wanted = named("projector", instances.projectors, self.size.projectors).chain(named(
            COMMAND_API,
            instances.command_apis,
            self.size.command_apis,
        ));
        for (name, wanted) in wanted {
            self.cancelled.check()?;
            match (wanted, now.get(&name)) {
                (true, Some(State::Ready)) | (false, Some(State::Stopped)) => {}
                (true, _) => drop(control::tell(self.layout, &Request::Start { name })?),
                (false, _) => drop(control::tell(self.layout, &Request::Stop { name })?),
            }
        }
        self.await_owners(instances.command_apis)
    }

    /// Returns a metric summed over all running instances of command-api and all series whose labels contain `label`.
    pub(super) fn count(&self, metric: &str, label: &str) -> Result<f64> {
        let counts = self.running_instances()?.into_iter().map(|instance| self.count_of(instance, metric, label));
        counts.sum()
    }

    /// Returns the processor seconds that the processes of a kind have used so far.
    pub(super) fn cpu_seconds(&self, kind: &str) -> Result<f64> {
        let processes = control::status(self.layout)?.processes.into_iter();
        let pids = processes.filter(|process| process.name.starts_with(kind)).filter_map(|process| process.pid);
        pids.map(|pid| processor_time::of_tree(pid).with_context(|| format!("a process of {kind} has exited"))).sum()
    }

    pub(super) fn post(&self, url: &str, body: &str) -> Result<u16> {
        let mut request = self.agent.post(url).header("Content-Type", "application/json");
        if self.size.secure {
            request = request.header("Authorization", self.layout.staff_bearer()?);
        }
        Ok(request.send(body)?.status().as_u16())
    }

    /// Registers the products `p-1` to `p-{products}`, with more stock than any run reserves.
    pub(super) fn register(&self, address: &str, products: u32) -> Result<()> {
        let body = r#"{"name":"A thing","price_cents":1177,"stock":1000000000}"#;
        (1..=products).try_for_each(|product| {
            let url = format!("{}://{address}/v1/products/p-{product}/register", self.scheme());
            let status = self.post(&url, body)?;
            ensure!(status == 200, "registering a product failed with {status}");
            self.cancelled.check()
        })
    }

    /// Sends a request with the service token and returns the status of the answer.
    pub(super) fn post_internal(&self, url: &str, body: &str) -> Result<u16> {
        let bearer = format!("Bearer {}", self.layout.secret("service-token")?);
        let request = self.agent.post(url).header("Content-Type", "application/json").header("Authorization", bearer);
        Ok(request.send(body)?.status().as_u16())
    }

    /// Starts, stops or signals a part of the stack; a start or stop is awaited.
    pub(super) fn tell(&self, request: &Request) -> Result<()> {
        self.cancelled.check()?;
        control::tell(self.layout, request).map(drop)
    }

    pub(super) fn get(&self, url: &str) -> Result<(u16, String)> {
        let response = self.agent.get(url).call()?;
        Ok((response.status().as_u16(), response.into_body().read_to_string()?))
    }

    /// Returns the sum of a metric's series at an admin port.
    pub(super) fn metric(&self, admin_port: u16, metric: &str) -> Result<f64> {
        Ok(sum_of(&self.get(&format!("http://127.0.0.1:{admin_port}/metrics"))?.1, metric, ""))
    }

    /// Waits until the projector has folded all accepted commands, including those of the reactor.
    pub(super) fn await_views(&self) -> Result<()> {
        let admin = self.layout.ports.projector_admin(1);
        let begun = Instant::now();
        let mut before = None;
        loop {
            self.cancelled.check()?;
            let accepted = self.count("stampede_commands_total", r#"outcome="accepted""#)?;
            let folded = self.metric(admin, "stampede_commits_folded_total")?;
            // The last folded event may have caused a command that is still in flight, so the count must be stable.
            if folded >= accepted && before == Some(accepted) {
                return Ok(());
            }
            if begun.elapsed() > FOLDED_WITHIN {
                bail!("after {} s the views show {folded} of {accepted} commands", FOLDED_WITHIN.as_secs());
            }
            before = Some(accepted);
            thread::sleep(POLL_VIEWS);
        }
    }

    /// Returns all series of a histogram at an admin port, added up.
    pub(super) fn histogram(&self, admin_port: u16, metric: &str) -> Result<Histogram> {
        let text = self.get(&format!("http://127.0.0.1:{admin_port}/metrics"))?.1;
        Ok(Histogram::parse(&text, metric))
    }

    /// Waits until each instance owns some partitions and together they own all.
    fn await_owners(&self, instances: u16) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.cancelled.check()?;
            let owned = self.running_instances()?.into_iter().map(|instance| self.count_of(instance, OWNED, ""));
            let owned: Vec<f64> = owned.collect::<Result<_>>().unwrap_or_default();
            let each = owned.len() == usize::from(instances) && owned.iter().all(|count| *count > 0.0);
            if each && owned.iter().sum::<f64>() == f64::from(self.size.partitions) {
                return Ok(());
            }
            if begun.elapsed() > OWNED_WITHIN {
                bail!("after {} s the instances own {owned:?} partitions", OWNED_WITHIN.as_secs());
            }
            thread::sleep(POLL);
        }
    }

    fn count_of(&self, instance: u16, metric: &str, label: &str) -> Result<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.layout.ports.command_admin(instance));
        let text = self.agent.get(url).call()?.into_body().read_to_string()?;
        Ok(sum_of(&text, metric, label))
    }

    fn running_instances(&self) -> Result<Vec<u16>> {
        let states = self.states()?;
        let runs = |instance: &u16| states.get(&format!("{COMMAND_API}-{instance}")) == Some(&State::Ready);
        Ok((1..=self.size.command_apis).filter(runs).collect())
    }

    fn states(&self) -> Result<BTreeMap<String, State>> {
        let processes = control::status(self.layout)?.processes;
        Ok(processes.into_iter().map(|process| (process.name, process.state)).collect())
    }
}

/// Returns the sum of a metric's series in Prometheus's text format, of those whose labels contain `label`.
pub(super) fn sum_of(text: &str, metric: &str, label: &str) -> f64 {
    let series = text.lines().filter_map(|line| line.strip_prefix(metric)?.rsplit_once(' '));
    let ours = series.filter(|(labels, _)| (labels.is_empty() || labels.starts_with('{')) && labels.contains(label));
    ours.filter_map(|(_, value)| value.parse::<f64>().ok()).sum()
}

/// Cumulative counts by upper bound in seconds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    fn parse(text: &str, metric: &str) -> Self {
        let mut bounds: Vec<(f64, f64)> = Vec::new();
        for line in text.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix("_bucket{")) {
            let Some((labels, count)) = line.rsplit_once("} ") else { continue };
            let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<f64>().ok());
            let (Some(bound), Ok(count)) = (bound, count.parse::<f64>()) else { continue };
            match bounds.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => bounds.push((bound, count)),
            }
        }
        Self(bounds)
    }

    /// Returns the observations added since an earlier reading.
    pub(super) fn since(&self, before: &Self) -> Self {
        let of = |bound: f64| before.0.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count);
        Self(self.0.iter().map(|(bound, count)| (*bound, count - of(*bound))).collect())
    }

    /// Returns the bound that a share of the observations does not exceed, or `None` if there are none.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = self.0.last()?.1 * share;
        self.0.iter().find(|(_, count)| *count >= wanted && wanted > 0.0).map(|(bound, _)| *bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_its_series_and_of_no_other_metric() {
        let text = "# HELP a What.\na{x=\"1\"} 2\na{x=\"2\"} 3\na_total{x=\"1\"} 100\nb 7\n";
        assert_eq!(sum_of(text, "a", ""), 5.0);
        assert_eq!(sum_of(text, "a", "x=\"2\""), 3.0);
        assert_eq!(sum_of(text, "b", ""), 7.0);
        assert_eq!(sum_of(text, "c", ""), 0.0);
    }

    #[test]
    fn a_quantile_is_the_bound_that_its_share_stays_below() {
        let text = |low, high| format!("a_bucket{{le=\"0.1\"}} {low}\na_bucket{{le=\"+Inf\"}} {high}\na_count 9\n");
        let during = Histogram::parse(&text(19, 20), "a").since(&Histogram::parse(&text(10, 10), "a"));
        assert_eq!(during, Histogram(vec![(0.1, 9.0), (f64::INFINITY, 10.0)]));
        assert_eq!((during.quantile(0.9), during.quantile(0.99)), (Some(0.1), Some(f64::INFINITY)));
        assert_eq!(Histogram::default().quantile(0.5), None);
    }
}
