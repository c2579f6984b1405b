//! Brings the tables to what a build needs, by subcommands of its projector.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::layout::Layout;
use crate::services;
use crate::size::{Size, Wanted};

/// Part of the error with which a build refuses tables that have migrations which it does not know.
const NEWER_TABLES: &str = "is missing from the filesystem";
/// Part of the error of a build that is older than an option.
const UNKNOWN_OPTION: &str = "unknown option";
/// Report of a rebuild that has nothing to do.
const NOTHING: &str = "no view has rows of another fold";

/// Part of the rebuild of the views that a build folds in another way than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Views {
    /// Makes their rows beside the live ones.
    Prepare,
    /// Makes these rows the live ones. Then only projectors of the build fold these views.
    Switch,
}

/// Applies the migrations of a build. Returns `false` if the tables have some that it does not know: it is older.
pub(super) fn migrate(layout: &Layout, binaries: &Path) -> Result<bool> {
    let (status, said) = run(layout, binaries, &["migrate"])?;
    match status.success() {
        true => println!("the tables have the build's migrations"),
        false if said.contains(NEWER_TABLES) => println!("the tables are newer than the build; they stay as they are"),
        false => bail!("the build's migrations failed: {}", said.trim()),
    }
    Ok(status.success())
}

/// Writes the snapshots of a build's form that are missing, so that its command-api does not fold long histories.
pub(super) fn snapshots(layout: &Layout, binaries: &Path) -> Result<()> {
    let (status, said) = run(layout, binaries, &["snapshots"])?;
    match status.success() {
        true => Ok(()),
        false => bail!("the build's snapshots failed: {}", said.trim()),
    }
}

/// Rebuilds the views whose live rows were made by another fold than that of a build.
pub(super) fn rebuild(layout: &Layout, binaries: &Path, part: Views) -> Result<()> {
    let option = match part {
        Views::Prepare => "--prepare",
        Views::Switch => "--accept",
    };
    let (status, said) = run(layout, binaries, &["rebuild", "--changed", option])?;
    if status.success() {
        return Ok(());
    }
    if !said.contains(UNKNOWN_OPTION) {
        bail!("the rebuild of the views failed: {}", said.trim());
    }
    if part == Views::Prepare {
        println!(
            "this build cannot tell which views it folds in another way; if a projector's \
             stampede_view_waits_for_rebuild is 1 afterwards, run `cargo stack rebuild VIEW --accept`"
        );
    }
    Ok(())
}

/// Runs a subcommand of a build's projector, prints what it reports, and returns its status and errors.
fn run(layout: &Layout, binaries: &Path, args: &[&str]) -> Result<(ExitStatus, String)> {
    let size = Size::decide(layout, &Wanted::one_of_each())?;
    let launch = services::projector_tool_of(binaries, layout, &size, args)?;
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).envs(launch.env.iter().map(|(name, value)| (name, value)));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start {}", launch.program.display()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let errors = thread::spawn(move || {
        let mut errors = String::new();
        stderr.map(|mut stderr| stderr.read_to_string(&mut errors)).transpose().map(|_| errors)
    });
    let lines = stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines());
    for line in lines {
        let line = line.context("cannot read what the projector reports")?;
        if !line.starts_with(NOTHING) {
            println!("projector {}: {line}", args[0]);
        }
    }
    let errors = errors.join().map_err(|_| anyhow!("a thread panicked"))?;
    Ok((child.wait()?, errors.context("cannot read the projector's errors")?))
}
