//! Redis as a cache: nothing on disk, memory bounded.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;

use crate::layout::Layout;
use crate::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use crate::probe::Probe;
use crate::provision::Tools;

pub(crate) const NAME: &str = "redis";
const STOP: Stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(5) };

pub(crate) fn url(layout: &Layout) -> String {
    format!("redis://127.0.0.1:{}/", layout.ports.redis())
}

pub(crate) fn part(layout: &Layout, tools: &Tools) -> Part {
    let port = layout.ports.redis();
    let port_text = port.to_string();
    let args = ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    // What it drops at its limit is read from Postgres again: rows, which end at some time, and no position, which does not.
    let limits = ["--maxmemory", "256mb", "--maxmemory-policy", "volatile-lru", "--daemonize", "no"];
    let mut launch = Launch::new(&tools.redis_server, args.into_iter().chain(limits));
    launch.dir = Some(layout.config());
    Part {
        name: NAME.to_owned(),
        launch,
        role: Role::Server { ready: Probe::Redis { port }, stop: STOP, on_death: OnDeath::Leave, tier: Tier::Redis },
        needs: Vec::new(),
        ports: BTreeMap::from([("redis", port)]),
    }
}
