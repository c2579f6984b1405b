//! Runs load generators with a time limit and returns their output.

use std::fs;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use stack::layout::{Layout, root};
use stack::part::Launch;
use stack::{logs, process};

use super::Cancelled;

const POLL: Duration = Duration::from_millis(20);

/// Returns the path of the script with which wrk's scripts report their results.
pub(super) fn results_script() -> String {
    root().join("tests/load/src/bench/results.lua").display().to_string()
}

/// Runs a program to completion and returns its output. Kills it after `limit`.
pub(super) fn run(
    layout: &Layout,
    name: &str,
    launch: &Launch,
    limit: Duration,
    cancelled: &Cancelled,
) -> Result<String> {
    let log = layout.log(name);
    let mut position = fs::metadata(&log).map_or(0, |metadata| metadata.len());
    let mut child = process::spawn(layout, name, launch, Signal::TERM)?;
    let ended = await_end(&mut child, name, limit, cancelled);
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
