//! Redis as a cache, without persistence and with bounded memory: one server, or a cluster of three masters with a
//! replica each.

mod security;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::accounts::Secured;
use crate::layout::Layout;
use crate::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use crate::probe::Probe;
use crate::provision::Tools;
use security::Security;

pub const NAME: &str = "redis";
/// Name of the task that joins the servers into a cluster.
pub const CLUSTER: &str = "redis-cluster";
/// Number of servers in a cluster; half of them are masters.
pub(crate) const NODES: u16 = 6;
const STOP: Stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(5) };

pub fn url(layout: &Layout, is_cluster: bool) -> String {
    if !is_cluster {
        return format!("redis://127.0.0.1:{}/", layout.ports.redis());
    }
    let node = |node| format!("127.0.0.1:{}", layout.ports.redis_node(node));
    let others: Vec<_> = (2..=NODES).map(|other| format!("node={}", node(other))).collect();
    format!("redis-cluster://{}?{}", node(1), others.join("&"))
}

/// Returns the name of the part that services depend on.
pub fn needed(is_cluster: bool) -> &'static str {
    if is_cluster { CLUSTER } else { NAME }
}

pub(crate) use security::{administer, admit, secure_url, write_users};

/// Returns the parts of Redis.
pub(crate) fn parts(
    layout: &Layout,
    tools: &Tools,
    is_cluster: bool,
    secured: Option<Secured<'_>>,
) -> Result<Vec<Part>> {
    let security = secured.map(|secured| Security::write(layout, secured)).transpose()?;
    if !is_cluster {
        let plain = part(layout, tools);
        return Ok(vec![match &security {
            Some(security) => security.protect(plain, layout.ports.redis()),
            None => plain,
        }]);
    }
    let mut parts = (1..=NODES).map(|number| node(layout, tools, number)).collect::<Result<Vec<_>>>()?;
    if let Some(security) = &security {
        parts = parts
            .into_iter()
            .zip(1..)
            .map(|(part, node)| security.protect_node(part, layout.ports.redis_node(node)))
            .collect();
    }
    let addresses = (1..=NODES).map(|node| format!("127.0.0.1:{}", layout.ports.redis_node(node)));
    let args = ["--cluster", "create"].map(String::from).into_iter().chain(addresses);
    let args = args.chain(["--cluster-replicas", "1", "--cluster-yes"].map(String::from));
    let mut create = Part::task(CLUSTER, Launch::new(cli(tools), args));
    if let Some(security) = &security {
        create.launch = security.of_tool(create.launch);
    }
    // Created once, because each node persists its view of the cluster in its folder.
    let create = create.stamped(layout.data().join("redis-cluster.made"), "");
    parts.push(create.needing(names(true)));
    Ok(parts)
}

pub fn part(layout: &Layout, tools: &Tools) -> Part {
    server(NAME.to_owned(), layout.ports.redis(), Launch { dir: Some(layout.config()), ..launch(tools, &[]) })
}

/// Returns the program that sends commands to a server.
fn cli(tools: &Tools) -> PathBuf {
    tools.redis_server.with_file_name("redis-cli")
}

/// Returns the ports of the servers.
fn ports(layout: &Layout, is_cluster: bool) -> Vec<u16> {
    if is_cluster {
        (1..=NODES).map(|node| layout.ports.redis_node(node)).collect()
    } else {
        vec![layout.ports.redis()]
    }
}

/// Returns the names of the servers.
pub fn names(is_cluster: bool) -> Vec<String> {
    if is_cluster { (1..=NODES).map(name).collect() } else { vec![NAME.to_owned()] }
}

fn name(node: u16) -> String {
    format!("{NAME}-{node}")
}

fn node(layout: &Layout, tools: &Tools, number: u16) -> Result<Part> {
    let dir = layout.data().join(name(number));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let bus = layout.ports.redis_bus(number).to_string();
    // Slots of live masters are served even while another master is down.
    let args = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-require-full-coverage", "no"];
    let args = args.into_iter().chain(["--cluster-node-timeout", "2000"]).collect::<Vec<_>>();
    Ok(server(name(number), layout.ports.redis_node(number), Launch { dir: Some(dir), ..launch(tools, &args) }))
}

fn launch(tools: &Tools, more: &[&str]) -> Launch {
    let args = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    // Only keys with an expiry are evicted: rows, which are read from Postgres again, but no positions.
    let limits = ["--maxmemory", "256mb", "--maxmemory-policy", "volatile-lru", "--daemonize", "no"];
    Launch::new(&tools.redis_server, args.into_iter().chain(limits).chain(more.iter().copied()))
}

fn server(name: String, port: u16, mut launch: Launch) -> Part {
    launch.args.extend([String::from("--port"), port.to_string()]);
    Part {
        name,
        launch,
        role: Role::Server { ready: Probe::Redis { port }, stop: STOP, on_death: OnDeath::Leave, tier: Tier::Redis },
        needs: Vec::new(),
        ports: BTreeMap::from([("redis", port)]),
    }
}
