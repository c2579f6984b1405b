//! `cargo stack grow`: copies the log of the running stack to one with more partitions and switches all services to it.
//!
//! The new log has a topic, a database and a Redis prefix of its own. Everything up to `command-api grow`'s closing of
//! the old log can be given up; from then on, the command is repeated until it succeeds.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::control::{self, Reply, Request};
use crate::layout::Layout;
use crate::part::Launch;
use crate::projections;
use crate::services::{GrowTools, Profile};
use crate::size::Size;
use crate::{edge, postgres, process, provision};

const FOLDER: &str = "grow-projector";
/// Maximum time that the views of the new log take to stop.
const STOPS_WITHIN: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Grow {
    /// New number of partitions, a multiple of the present one
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    partitions: u16,
}

impl Grow {
    pub(crate) fn run(&self, layout: &Layout, profile: Profile) -> Result<()> {
        let now = projections::size(layout)?;
        ensure!(!now.secure, "the accounts of a secured stack have rights to its first log alone");
        let grown = Size { partitions: self.partitions, grown: true, ..now.clone() };
        ensure!(
            grown.partitions > now.partitions && grown.partitions.is_multiple_of(now.partitions),
            "the log has {} partitions; choose a multiple of that, such as --partitions {}",
            now.partitions,
            4 * now.partitions
        );
        let began = Instant::now();
        let tools = GrowTools::new(layout, &now, &grown, profile)?;
        create_database(layout, &tools.database)?;
        run(&tools.migrate)?;
        let mut folding = process::spawn(layout, FOLDER, &tools.fold, Signal::TERM)?;
        let switched = run(&tools.grow).and_then(|()| run(&tools.take_over)).and_then(|()| {
            grown.keep(layout)?;
            switch(layout, &tools.settings, (now.partitions, grown.partitions))
        });
        process::signal_group(folding.id(), Signal::TERM);
        let stopped = Instant::now();
        while folding.try_wait()?.is_none() {
            if stopped.elapsed() > STOPS_WITHIN {
                process::signal_group(folding.id(), Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        process::forget(layout, FOLDER);
        switched?;
        println!("the log has {} partitions, after {:.1} s", grown.partitions, began.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Starts all services again with the settings of the new log: those that read first, so that they know every token
/// that is given out, then the owners, then the projectors, which react.
fn switch(layout: &Layout, settings: &[(String, String)], (from, to): (u16, u16)) -> Result<()> {
    let running = control::status(layout)?.processes;
    for tier in ["query-api-", "command-api-", "projector-"] {
        for process in running.iter().filter(|process| process.name.starts_with(tier)) {
            let name = || process.name.clone();
            told(layout, &Request::Stop { name: name() })?;
            told(layout, &Request::Configure { name: name(), env: settings.to_vec() })?;
            told(layout, &Request::Start { name: name() })?;
        }
    }
    if running.iter().any(|process| process.name == edge::NAME) {
        edge::set_partitions(layout, from, to)?;
        told(layout, &Request::Kill { name: edge::NAME.to_owned(), signal: Signal::HUP.as_raw() })?;
    }
    Ok(())
}

fn told(layout: &Layout, request: &Request) -> Result<()> {
    match control::ask(layout, request)? {
        Some(Reply::Done(done)) => println!("{done}"),
        Some(Reply::Failed(reason)) => bail!(reason),
        Some(Reply::Status(_)) | None => bail!("the stack has stopped; start it with `cargo stack up`"),
    }
    Ok(())
}

fn create_database(layout: &Layout, name: &str) -> Result<()> {
    let tools = provision::ensure(&layout.log("apt"))?;
    let url = postgres::url(layout)?;
    let asked = Command::new(tools.postgres.join("psql"))
        .args(["-X", "-q", "-d", &url, "-c", &format!("CREATE DATABASE \"{name}\"")])
        .stdin(Stdio::null())
        .output()
        .context("cannot start psql")?;
    let said = String::from_utf8_lossy(&asked.stderr);
    ensure!(asked.status.success() || said.contains("already exists"), "cannot create the database {name}: {said}");
    Ok(())
}

/// Runs a program to its end, with the caller's terminal.
fn run(launch: &Launch) -> Result<()> {
    let env = launch.env.iter().map(|(name, value)| (name, value));
    let status = Command::new(&launch.program).args(&launch.args).envs(env).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {}", launch.program.display()))?;
    ensure!(status.success(), "{} {} {}", launch.program.display(), launch.args.join(" "), process::describe(status));
    Ok(())
}
