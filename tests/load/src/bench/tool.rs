//! Runs load generators with a time limit and returns their output.

use std::fs;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use stack::layout::root;
use stack::part::Launch;
use stack::{logs, process};

use super::Cancelled;
use super::environment::Environment;

const POLL: Duration = Duration::from_millis(20);

/// Returns the path of a script in this folder.
pub(super) fn script(name: &str) -> String {
    root().join("tests/load/src/bench").join(name).display().to_string()
}

/// Runs a load generator to completion and returns its result, a line of JSON. Kills it after `limit`.
pub(super) fn load<T: DeserializeOwned>(environment: &Environment<'_>, launch: &Launch, limit: Duration) -> Result<T> {
    let text = run(environment, "load", launch, limit)?;
    let line = text.lines().rfind(|line| line.starts_with('{')).with_context(|| format!("no result in {text:?}"))?;
    serde_json::from_str(line).with_context(|| format!("no result: {line}"))
}

/// Runs a program to completion and returns its output. Kills it after `limit`.
pub(super) fn run(environment: &Environment<'_>, name: &str, launch: &Launch, limit: Duration) -> Result<String> {
    let layout = environment.layout;
    let log = layout.log(name);
    let mut position = fs::metadata(&log).map_or(0, |metadata| metadata.len());
    let mut child = process::spawn(layout, name, launch, Signal::TERM)?;
    let ended = await_end(&mut child, name, limit, environment.cancelled);
    process::signal_group(child.id(), Signal::KILL);
    // Returns at once: the process has exited or was killed.
    let status = child.wait();
    process::forget(layout, name);
    let output = logs::read_from(&log, &mut position).with_context(|| format!("cannot read {}", log.display()))?;
    let output = String::from_utf8_lossy(&output).into_owned();
    ended?;
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        bail!("{name} failed: {}", output.trim());
    }
    Ok(output)
}

fn await_end(child: &mut Child, name: &str, limit: Duration, cancelled: &Cancelled) -> Result<()> {
    let begun = Instant::now();
    while child.try_wait().with_context(|| format!("cannot wait for {name}"))?.is_none() {
        cancelled.check()?;
        if begun.elapsed() > limit {
            bail!("{name} took longer than {} s", limit.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(())
}
