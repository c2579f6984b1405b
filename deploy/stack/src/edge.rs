//! Configures the edge: nginx in front of both tiers.

mod config;
pub(crate) mod access_log;
pub mod limits;
pub mod origins;
pub mod container;
pub(crate) mod peers;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use access_log::AccessLog;
pub(crate) use config::staff_header;
use config::{Config, ServicesTls};

use crate::certificates;
use crate::layout::{Layout, root};
use crate::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use crate::probe::Probe;
use crate::provision::Tools;
use crate::size::Size;
use crate::up;

pub(crate) const NAME: &str = "edge";
/// Path that the edge itself answers.
const READY: &str = "/edge/ready";
/// Name of the access log among the logs.
const ACCESS_LOG: &str = "access";
/// SIGQUIT lets nginx finish the requests in flight.
const STOP: Stop = Stop { signal: Signal::QUIT, grace: Duration::from_secs(5) };

pub(crate) fn part(layout: &Layout, tools: &Tools, size: &Size, services: &[String]) -> Result<Part> {
    let config = config(layout, tools, size);
    fs::create_dir_all(&config.folder).with_context(|| format!("cannot create {}", config.folder.display()))?;
    let file = config.write()?;
    peers::store(layout, &peers::planned(layout, size))?;
    Ok(Part {
        name: NAME.to_owned(),
        launch: Launch::new(&tools.nginx, config.arguments(&file)),
        role: Role::Server {
            ready: Probe::Http { port: layout.ports.edge_itself(), path: READY },
            stop: STOP,
            on_death: OnDeath::Restart,
            tier: Tier::Edge,
        },
        needs: services.to_vec(),
        ports: BTreeMap::from([
            (size.scheme(), layout.ports.edge()),
            ("control", layout.ports.edge_control()),
            ("itself", layout.ports.edge_itself()),
        ]),
    })
}

/// Changes the number of partitions in the configuration, which nginx reads again at SIGHUP.
pub(crate) fn set_partitions(layout: &Layout, from: u16, to: u16) -> Result<()> {
    let file = layout.config().join(NAME).join("nginx.conf");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = text.replace(&format!("configure({from},"), &format!("configure({to},"));
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn config(layout: &Layout, tools: &Tools, size: &Size) -> Config {
    let local = |port| format!("127.0.0.1:{port}");
    Config {
        listen: local(layout.ports.edge()),
        itself: local(layout.ports.edge_itself()),
        url: up::url(layout, size.secure),
        certificate: size.secure.then(|| {
            let own = certificates::pair(&layout.certificates(), NAME);
            (own.certificate, own.key)
        }),
        services: size.secure.then(|| ServicesTls {
            authority: certificates::authority(&layout.certificates()),
            name: "localhost".to_owned(),
        }),
        folder: layout.config().join(NAME),
        source: source(),
        modules: tools.nginx_modules.clone(),
        partitions: size.partitions,
        control: local(layout.ports.edge_control()),
        limits: size.limits.clone(),
        origins: size.origins.clone(),
        access_log: AccessLog { file: layout.log(ACCESS_LOG), lines: size.access_log },
        traced_percent: size.traced_percent,
        staff_token: size.secure.then(|| layout.staff_token_in_shell()),
    }
}

/// Returns the folder of the edge's files in this checkout.
fn source() -> PathBuf {
    root().join("deploy/edge")
}
