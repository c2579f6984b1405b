//! Prometheus and Alertmanager beside a stack, with the rules of `deploy/monitoring`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::layout::{Layout, Ports, root};
use crate::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use crate::probe::Probe;
use crate::provision;
use crate::services::Service;
use crate::size::Size;

const PROMETHEUS: &str = "prometheus";
const ALERTMANAGER: &str = "alertmanager";
const STOP: Stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(10) };
/// Interval of scrapes and evaluations; the alerts' windows presume it.
const INTERVAL: &str = "5s";
const KEPT_FOR: &str = "15d";

/// Returns the parts of both, after installing the missing ones.
pub(crate) fn parts(layout: &Layout, size: &Size) -> Result<Vec<Part>> {
    let tools = provision::ensure_observers(&layout.log("apt"))?;
    let data = |name: &str| layout.data().join(name).to_string_lossy().into_owned();
    let rules = root().join("deploy/monitoring");
    fs::create_dir_all(folder(layout)).with_context(|| format!("cannot create {}", folder(layout).display()))?;
    let counts = Service::ALL.into_iter().zip([size.command_apis, size.query_apis, size.projectors]);
    store_targets(layout, counts.flat_map(|(service, count)| (1..=count).map(move |number| (service, number))))?;
    let config = folder(layout).join("prometheus.yml");
    let text = serde_json::to_string_pretty(&prometheus(layout, &rules.join("rules.yml").to_string_lossy()))?;
    fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    let prometheus = [
        format!("--config.file={}", config.display()),
        format!("--web.listen-address={}", local(layout.ports.prometheus())),
        format!("--storage.tsdb.path={}", data(PROMETHEUS)),
        format!("--storage.tsdb.retention.time={KEPT_FOR}"),
    ];
    let alertmanager = [
        format!("--config.file={}", rules.join("alertmanager.yml").display()),
        format!("--web.listen-address={}", local(layout.ports.alertmanager())),
        format!("--storage.path={}", data(ALERTMANAGER)),
        // There is only one.
        String::from("--cluster.listen-address="),
    ];
    Ok(vec![
        part(ALERTMANAGER, Launch::new(tools.alertmanager, alertmanager), layout.ports.alertmanager()),
        part(PROMETHEUS, Launch::new(tools.prometheus, prometheus), layout.ports.prometheus()),
    ])
}

/// Replaces the list of instances that Prometheus asks, which it reads again at once.
pub(crate) fn store_targets(layout: &Layout, instances: impl Iterator<Item = (Service, u16)>) -> Result<()> {
    let target = |(service, number): (Service, u16)| {
        let labels = json!({ "job": service.name(), "instance": service.instance_name(number) });
        json!({ "targets": [local(admin_port(layout.ports, service, number))], "labels": labels })
    };
    let (path, new) = (targets(layout), folder(layout).join("targets.new"));
    let text = serde_json::to_string_pretty(&instances.map(target).collect::<Vec<_>>())?;
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Returns the addresses of both, for display.
pub(crate) fn addresses(layout: &Layout) -> String {
    format!(
        "Alerts and metrics: http://{}, and Alertmanager: http://{}\n\n",
        local(layout.ports.prometheus()),
        local(layout.ports.alertmanager())
    )
}

/// Returns Prometheus's configuration. Admin listeners on loopback have no TLS, even in a secured stack.
fn prometheus(layout: &Layout, rules: &str) -> Value {
    json!({
        "global": { "scrape_interval": INTERVAL, "evaluation_interval": INTERVAL },
        "rule_files": [rules],
        "alerting": { "alertmanagers": [{ "static_configs": [{ "targets": [local(layout.ports.alertmanager())] }] }] },
        "scrape_configs": [{
            "job_name": "services",
            "file_sd_configs": [{ "files": [targets(layout)], "refresh_interval": INTERVAL }],
        }],
    })
}

fn part(name: &'static str, launch: Launch, port: u16) -> Part {
    Part {
        name: name.to_owned(),
        launch,
        role: Role::Server {
            ready: Probe::Http { port, path: "/-/ready" },
            stop: STOP,
            on_death: OnDeath::Restart,
            tier: Tier::Observer,
        },
        needs: Vec::new(),
        ports: BTreeMap::from([("http", port)]),
    }
}

fn admin_port(ports: Ports, service: Service, number: u16) -> u16 {
    match service {
        Service::CommandApi => ports.command_admin(number),
        Service::QueryApi => ports.query_admin(number),
        Service::Projector => ports.projector_admin(number),
    }
}

fn folder(layout: &Layout) -> PathBuf {
    layout.config().join(PROMETHEUS)
}

fn targets(layout: &Layout) -> PathBuf {
    folder(layout).join("targets.json")
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}
