//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::bench::{self, Bench};
use crate::control::{self, Request};
use crate::layout::Layout;
use crate::plan::Wanted;
use crate::services::Profile;
use crate::status::Phase;
use crate::{logs, process, projections, provision, replay, sale, test, up};

/// Runs the whole system on this machine: Kafka, Postgres, Redis, the services and the edge.
#[derive(Parser)]
#[command(name = "cargo stack", bin_name = "cargo stack")]
pub(crate) struct Cli {
    /// Keep everything in this folder [default: .stack in the checkout]
    #[arg(long, global = true, hide = true)]
    state_dir: Option<PathBuf>,
    /// Take ports from here on, 300 of them, the edge's first: for a second stack beside another one
    #[arg(long, global = true, hide = true, value_parser = clap::value_parser!(u16).range(1024..=65000))]
    base_port: Option<u16>,
    /// How to build the services
    #[arg(long, global = true, hide = true, value_enum, default_value = "release")]
    profile: Profile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what this machine lacks, and nothing else
    Setup,
    /// Start everything and stay in the foreground until Ctrl-C
    Up {
        /// Return once everything is ready
        #[arg(long, short)]
        detach: bool,
        /// This process is the one in the background
        #[arg(long, hide = true)]
        background: bool,
        /// Start with empty data
        #[arg(long)]
        fresh: bool,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Stop everything, and end what a killed run left behind
    Down,
    /// Show what runs; exits with 1 where nothing does
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Print a process's log
    Logs {
        name: String,
        /// Go on as it grows
        #[arg(long, short)]
        follow: bool,
        /// How many lines to begin with
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: usize,
    },
    /// Stop one process until it is started again
    Stop { name: String },
    /// Start a process that was stopped or died
    Start { name: String },
    /// Send a signal to a process; a service or the edge starts again if it dies of it
    Kill {
        name: String,
        #[arg(default_value = "KILL", value_parser = signal)]
        signal: i32,
    },
    /// Run the tests, on servers of their own
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
        #[command(flatten)]
        scope: test::Scope,
    },
    /// Send a real shop's orders through the system and compare every view with the file's own sums
    Replay(replay::Args),
    /// Play a flash sale on the running stack: buyers, watchers, payments; then compare all of it with the log
    Sale(sale::Args),
    /// Read the whole log and compare every checkpoint and a sample of rows with it; exits with 1 where something differs
    Audit(projections::Audit),
    /// Fold views anew from the whole log, compare them with the live ones, and put them in their place, while all goes on
    Rebuild(projections::Rebuild),
    /// Let all readers pass over a value of the log that cannot be read, once a person has looked at it
    Except(projections::Except),
    /// Measure how fast it is, on a stack of its own; a stack that runs is not disturbed, but disturbs
    #[command(subcommand)]
    Bench(Bench),
}

pub(crate) fn run(cli: Cli) -> ExitCode {
    match cli.command.run(&cli.state_dir, cli.base_port, cli.profile) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn run(self, state_dir: &Option<PathBuf>, base_port: Option<u16>, profile: Profile) -> Result<ExitCode> {
        let layout = Layout::new(state_dir.as_deref(), base_port)?;
        match self {
            Self::Setup => {
                layout.create()?;
                provision::ensure(&layout.log("apt"))?;
                println!("Everything that the stack needs is there.");
            }
            Self::Up { detach: true, background: false, .. } => return up::in_background(&layout),
            Self::Up { background, fresh, wanted, .. } => {
                return up::in_foreground(layout, &up::Options { background, fresh, wanted, profile });
            }
            Self::Down => down(&layout)?,
            Self::Status { json } => return status(&layout, json),
            Self::Logs { name, follow, lines } => logs::print(&layout, &name, lines, follow)?,
            Self::Stop { name } => println!("{}", control::tell(&layout, &Request::Stop { name })?),
            Self::Start { name } => println!("{}", control::tell(&layout, &Request::Start { name })?),
            Self::Kill { name, signal } => println!("{}", control::tell(&layout, &Request::Kill { name, signal })?),
            Self::Test { filter, scope } => return test::run(&layout, base_port, filter, &scope),
            Self::Bench(bench) => return bench::run(&layout, base_port, &bench),
            Self::Audit(audit) => return Err(audit.run(&layout, profile)?),
            Self::Except(except) => return Err(except.run(&layout, profile)?),
            Self::Rebuild(rebuild) => return Err(rebuild.run(&layout, profile)?),
            Self::Sale(args) => return sale::run(&layout, &args),
            Self::Replay(args) => return replay::run(layout, profile, &args),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn down(layout: &Layout) -> Result<()> {
    if control::is_locked(layout)? {
        control::down(layout)?;
        println!("everything has stopped");
        return Ok(());
    }
    match process::end_leftovers(layout) {
        names if names.is_empty() => println!("nothing runs here"),
        names => println!("ended what a killed run had left: {}", names.join(", ")),
    }
    Ok(())
}

fn status(layout: &Layout, json: bool) -> Result<ExitCode> {
    let status = control::status(layout)?;
    if json {
        println!("{}", status.json());
    } else if status.state == Phase::Down {
        println!("no stack runs here; `cargo stack up` starts one");
        let left: Vec<_> = process::leftovers(layout).into_iter().map(|(record, _)| record.name).collect();
        if !left.is_empty() {
            println!("a killed run left: {}; `cargo stack down` ends them", left.join(", "));
        }
    } else {
        print!("{}", status.table());
    }
    Ok(if status.state == Phase::Down { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn signal(text: &str) -> Result<i32, String> {
    let signal = process::parse_signal(text).ok_or("no such signal; e.g. KILL, TERM, STOP, CONT or a number")?;
    Ok(signal.as_raw())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_can_be_parsed() {
        Cli::command().debug_assert();
    }
}
