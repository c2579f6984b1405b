//! The edge in a container, where nginx's configuration comes from variables and instances are behind names.
//!
//! This program fills in the configuration, starts nginx, and follows the addresses of the names: when instances come or
//! go, it tells nginx the new list. When the certificate changes, nginx reads its files again. No shell is needed.

mod settings;

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use settings::Settings;

use super::access_log::AccessLog;
use super::config::Config;
use super::{READY, peers};
use crate::probe;
use crate::provision::find;

/// Exit codes, which are those of the services.
const USAGE: u8 = 64;
const SOFTWARE: u8 = 70;
/// Interval at which names are resolved again.
const RESOLVED_EVERY: Duration = Duration::from_secs(2);
/// Interval at which signals and nginx are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Runs the edge until a signal ends it, or its subcommand `healthcheck`, and returns the exit code.
pub fn main(mut args: impl Iterator<Item = String>) -> ExitCode {
    let settings = Settings::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let (result, code) = match (settings, args.next().as_deref(), args.next()) {
        (Err(wrong), ..) => (Err(wrong), USAGE),
        (Ok(settings), None, _) => (run(&settings), SOFTWARE),
        (Ok(settings), Some("healthcheck"), None) => {
            (probe::http_ok(settings.itself(), READY).map_err(anyhow::Error::msg), SOFTWARE)
        }
        (Ok(_), Some(_), _) => (Err(anyhow!("unexpected arguments; the only one is healthcheck")), USAGE),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("Error: {error:#}");
    ExitCode::from(code)
}

fn run(settings: &Settings) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT]).context("cannot handle signals")?;
    let nginx = find::program("nginx").context("nginx is missing")?;
    let modules = find::nginx_modules().context("nginx's Lua module is missing")?;
    let is_ended = |signals: &mut Signals| signals.pending().next().is_some();
    let Some(upstreams) = first_upstreams(settings, || is_ended(&mut signals)) else {
        return Ok(());
    };
    let config = settings.config(&modules);
    let file = config.write()?;
    peers::store_in(&settings.folder, &upstreams.list())?;
    let mut nginx = Command::new(&nginx)
        .args(config.arguments(&file))
        .spawn()
        .with_context(|| format!("cannot start {}", nginx.display()))?;
    let mut followed = Followed { upstreams, certificate: settings.content_of_certificate(), at: Instant::now() };
    while !is_ended(&mut signals) {
        if let Some(status) = nginx.try_wait()? {
            bail!("nginx has ended: {status}");
        }
        if followed.at.elapsed() >= RESOLVED_EVERY {
            followed.follow(settings, &nginx);
        }
        thread::sleep(TICK);
    }
    end(&mut nginx, settings.grace)?;
    Ok(())
}

/// State that the running nginx was told.
struct Followed {
    upstreams: Upstreams,
    certificate: [Option<Vec<u8>>; 2],
    /// Time of the last look.
    at: Instant,
}

impl Followed {
    /// Tells nginx what has changed. A failure is tried again at the next look.
    fn follow(&mut self, settings: &Settings, nginx: &Child) {
        self.at = Instant::now();
        let certificate = settings.content_of_certificate();
        if certificate != self.certificate {
            // If nginx cannot use a new certificate, it logs that and keeps the old one.
            signal(nginx, Signal::HUP);
            self.certificate = certificate;
        }
        let current = self.upstreams.follow(settings);
        if current == self.upstreams {
            return;
        }
        let list = current.list();
        // nginx reads the file when it reads its configuration again.
        match peers::store_in(&settings.folder, &list).and_then(|()| peers::tell_at(settings.control(), &list)) {
            Ok(()) => {
                eprintln!("the instances are {current}");
                self.upstreams = current;
            }
            Err(error) => eprintln!("nginx was not told that the instances are {current}: {error:#}"),
        }
    }
}

/// Waits until each tier has an instance, or returns `None` when `is_ended` does.
fn first_upstreams(settings: &Settings, mut is_ended: impl FnMut() -> bool) -> Option<Upstreams> {
    let mut reported = None;
    loop {
        let upstreams = Upstreams::default().follow(settings);
        if !upstreams.commands.is_empty() && !upstreams.queries.is_empty() {
            eprintln!("the instances are {upstreams}");
            return Some(upstreams);
        }
        if is_ended() {
            return None;
        }
        if reported.as_ref() != Some(&upstreams) {
            eprintln!("waiting for an instance of each tier; so far: {upstreams}");
            reported = Some(upstreams);
        }
        thread::sleep(TICK);
    }
}

/// Lets nginx finish the requests in flight, and ends it when the grace period is over.
fn end(nginx: &mut Child, grace: Duration) -> Result<ExitStatus> {
    signal(nginx, Signal::QUIT);
    let until = Instant::now() + grace;
    while Instant::now() < until {
        if let Some(status) = nginx.try_wait()? {
            return Ok(status);
        }
        thread::sleep(TICK);
    }
    signal(nginx, Signal::TERM);
    Ok(nginx.wait()?)
}

fn signal(nginx: &Child, signal: Signal) {
    let pid = i32::try_from(nginx.id()).ok().and_then(Pid::from_raw);
    // A process that has ended is noticed by its parent's next wait.
    let _ = pid.map(|pid| rustix::process::kill_process(pid, signal));
}

/// Addresses of the instances of both tiers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Upstreams {
    commands: BTreeSet<SocketAddr>,
    queries: BTreeSet<SocketAddr>,
}

impl Upstreams {
    /// Resolves the names. A tier of which no name has an address keeps the addresses that it had.
    fn follow(&self, settings: &Settings) -> Self {
        let tier = |names: &[String], before: &BTreeSet<SocketAddr>| {
            let now: BTreeSet<_> = names.iter().flat_map(|name| name.to_socket_addrs().into_iter().flatten()).collect();
            if now.is_empty() { before.clone() } else { now }
        };
        Self { commands: tier(&settings.commands, &self.commands), queries: tier(&settings.queries, &self.queries) }
    }

    /// Returns the list as nginx reads it: a line with tier and address for each instance.
    fn list(&self) -> String {
        let commands = self.commands.iter().map(|address| format!("commands {address}\n"));
        commands.chain(self.queries.iter().map(|address| format!("queries {address}\n"))).collect()
    }
}

impl std::fmt::Display for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |tier: &BTreeSet<SocketAddr>| match tier.len() {
            0 => "none".to_owned(),
            _ => tier.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" "),
        };
        write!(f, "{} for commands, {} for queries", list(&self.commands), list(&self.queries))
    }
}

impl Settings {
    fn config(&self, modules: &Path) -> Config {
        let local = |port| format!("127.0.0.1:{port}");
        Config {
            listen: self.listen.to_string(),
            itself: local(self.itself()),
            control: local(self.control()),
            certificate: self.certificate.clone(),
            services: self.services.clone(),
            url: self.url.clone(),
            folder: self.folder.clone(),
            source: self.source.clone(),
            modules: modules.to_owned(),
            partitions: self.partitions,
            limits: self.limits.clone(),
            origins: self.origins.clone(),
            access_log: AccessLog { file: "/dev/stdout".into(), lines: self.access_log_lines },
            traced_percent: self.traced_percent,
            // Its services listen beyond loopback, where they want the token.
            staff_token: Some("$STAFF_TOKEN".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_follows_its_names_and_keeps_its_addresses_while_none_resolves() {
        let settings = |queries: &str| {
            Settings::read(|name| match name {
                "COMMAND_APIS" => Some("127.0.0.1:8081,localhost:8081".to_owned()),
                "QUERY_APIS" => Some(queries.to_owned()),
                _ => None,
            })
            .unwrap()
        };
        let first = Upstreams::default().follow(&settings("127.0.0.1:8082"));
        assert!(first.commands.contains(&"127.0.0.1:8081".parse().unwrap()));
        assert_eq!(first.queries, ["127.0.0.1:8082".parse().unwrap()].into());
        assert!(first.list().ends_with("commands 127.0.0.1:8081\nqueries 127.0.0.1:8082\n"), "{}", first.list());
        assert_eq!(first.follow(&settings("nowhere.invalid:8082")), first);
        assert_eq!(first.follow(&settings("127.0.0.2:8082")).queries, ["127.0.0.2:8082".parse().unwrap()].into());
    }
}
