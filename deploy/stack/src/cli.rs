//! The command line.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Error, Result};
use clap::{Args, Parser, Subcommand};

use crate::archive::{Archive, Restore};
use crate::autoscale::Autoscale;
use crate::control::{self, Request};
use crate::deploy::Deploy;
use crate::layout::Layout;
use crate::recover::Recover;
use crate::renew::Renew;
use crate::report::Report;
use crate::scale::Scale;
use crate::services::Profile;
use crate::size::Wanted;
use crate::status::Phase;
use crate::{grow, kafka, load, logs, process, projections, provision, test, up};

/// Runs the whole system on this machine: Kafka, Postgres, Redis, the services and the edge.
#[derive(Parser)]
#[command(name = "cargo stack", bin_name = "cargo stack")]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// State directory [default: .stack in the checkout]
    #[arg(long, global = true, hide = true)]
    state_dir: Option<PathBuf>,
    /// First of the 300 ports to use, which is the edge's; lets a second stack run beside another one
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1024..=65000))]
    pub base_port: Option<u16>,
    /// Cargo profile of the services
    #[arg(long, global = true, hide = true, value_enum, default_value = "quick")]
    pub profile: Profile,
}

#[derive(Subcommand)]
#[command(disable_help_subcommand = true)]
enum Command {
    /// Install the system packages that are missing, without starting anything
    Setup,
    /// Start everything and stay in the foreground until Ctrl-C
    Up {
        /// Return once everything is ready
        #[arg(long, short)]
        detach: bool,
        /// Marks the background process that --detach starts
        #[arg(long, hide = true)]
        background: bool,
        /// Start with empty data
        #[arg(long)]
        fresh: bool,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Stop everything, including processes left behind by a killed run
    Down,
    /// Show the processes; exits with 1 if no stack is running
    Status {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Print a process's log
    Logs {
        name: String,
        /// Keep printing as the log grows
        #[arg(long, short)]
        follow: bool,
        /// Number of lines to print from the end of the log
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: usize,
    },
    /// Stop one process and keep it stopped
    Stop { name: String },
    /// Start a process that was stopped or has died
    Start { name: String },
    /// Send a signal to a process; services and the edge are restarted if they die
    Kill {
        name: String,
        #[arg(default_value = "KILL", value_parser = signal)]
        signal: i32,
    },
    /// Change the numbers of instances of services while the stack runs, e.g. `query-api=3 command-api=1`
    Scale(Scale),
    /// Replace the certificates of a secured stack's services and of its edge, or its passwords, while they serve
    Renew(Renew),
    /// Change the numbers of instances by their load, until Ctrl-C
    Autoscale(Autoscale),
    /// Replace the programs of the running stack by those of another build, one instance at a time
    Deploy(Deploy),
    /// Run the tests, on dedicated servers
    Test {
        /// Run only tests whose name contains this
        filter: Option<String>,
        #[command(flatten)]
        scope: test::Scope,
    },
    /// Send a real shop's orders through the system and compare every view with totals computed from the file
    Replay(load::Args),
    /// Simulate a flash sale on the running stack (buyers, watchers, payments), then check the results against the log
    Sale(load::Args),
    /// Pack versions, settings, status, logs, metrics and sizes into one file, without personal data and secrets
    Report(Report),
    /// Compare every checkpoint and a sample of rows with the whole log; exits with 1 if anything differs
    Audit(projections::Audit),
    /// Rebuild views from the whole log, compare them with the live ones and swap them in, without downtime
    Rebuild(projections::Rebuild),
    /// Copy the log of the running stack to one with more partitions, and switch to it
    Grow(grow::Grow),
    /// Fill Postgres from the log alone after it was lost, while the stack is stopped
    Recover(Recover),
    /// Copy the log of the running stack to a folder, and what it gets, until Ctrl-C
    Archive(Archive),
    /// Write an archived log to the Kafka of a stack that is stopped and has no log; `up` starts the services on it
    Restore(Restore),
    /// Make all readers skip an unreadable record of the log, after an operator has examined it
    Except(projections::Except),
    /// Creates the rules of a secured stack's accounts at Kafka; the start of the stack runs it
    #[command(hide = true)]
    KafkaRules {
        brokers: u16,
        /// Topics of the logs that the accounts may use
        #[arg(required = true)]
        topics: Vec<String>,
    },
    /// Measure performance, on a dedicated stack; stop other stacks first, because their load distorts the figures
    Bench(load::Args),
    /// Print this message or the help of the given subcommand(s)
    Help {
        /// Names of the subcommand and of its own
        command: Vec<OsString>,
    },
}

pub fn run(cli: Cli) -> ExitCode {
    exit_code(cli.command.run(&cli.options))
}

/// Returns the exit code of a command, after printing its error.
pub fn exit_code(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

impl Options {
    pub fn layout(&self) -> Result<Layout> {
        Layout::new(self.state_dir.as_deref(), self.base_port)
    }
}

impl Command {
    fn run(self, options: &Options) -> Result<ExitCode> {
        let (layout, profile) = (options.layout()?, options.profile);
        match self {
            Self::Setup => {
                layout.create()?;
                provision::ensure_all(&layout.log("apt"))?;
                println!("All required packages are installed.");
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
            Self::Scale(scale) => scale.run(&layout)?,
            Self::Renew(renew) => renew.run(&layout)?,
            Self::Autoscale(autoscale) => {
                autoscale.run(&layout, || false, |change| println!("{change}"))?;
            }
            Self::Deploy(deploy) => deploy.run(&layout, profile)?,
            Self::Test { filter, scope } => return test::run(&layout, options.base_port, filter, &scope),
            Self::Report(report) => report.run(&layout)?,
            Self::Audit(audit) => return Err(audit.run(&layout, profile)?),
            Self::Except(except) => return Err(except.run(&layout, profile)?),
            Self::Archive(archive) => return Err(archive.run(&layout, profile)?),
            Self::Restore(restore) => return restore.run(&layout, profile),
            Self::Grow(grow) => grow.run(&layout, profile)?,
            Self::Recover(recover) => recover.run(&layout, profile)?,
            Self::Rebuild(rebuild) => return Err(rebuild.run(&layout, profile)?),
            Self::KafkaRules { brokers, topics } => kafka::grant(&layout, brokers, &topics)?,
            Self::Replay(args) | Self::Sale(args) | Self::Bench(args) => return Err(load::run(args)?),
            Self::Help { command } => return Err(help(&command)?),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn down(layout: &Layout) -> Result<()> {
    if control::is_locked(layout)? {
        control::down(layout)?;
        // A program that runs beside it, such as one that grows its log, may have been left behind.
        process::end_leftovers(layout);
        println!("the stack has stopped");
        return Ok(());
    }
    match process::end_leftovers(layout) {
        names if names.is_empty() => println!("no stack is running"),
        names => println!("stopped processes left behind by a killed run: {}", names.join(", ")),
    }
    Ok(())
}

fn status(layout: &Layout, json: bool) -> Result<ExitCode> {
    let status = control::status(layout)?;
    if json {
        println!("{}", status.json());
    } else if status.state == Phase::Down {
        println!("no stack is running; start one with `cargo stack up`");
        let left: Vec<_> = process::leftovers(layout).into_iter().map(|(record, _)| record.name).collect();
        if !left.is_empty() {
            println!("left behind by a killed run: {}; stop them with `cargo stack down`", left.join(", "));
        }
    } else {
        print!("{}", status.table());
    }
    Ok(if status.state == Phase::Down { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs this program again to print the help of a command, which may be one of `load`. Returns only on failure.
fn help(command: &[OsString]) -> Result<Error> {
    let own = env::current_exe().context("cannot locate this program's executable")?;
    Ok(process::exec(std::process::Command::new(own).args(command).arg("--help")))
}

fn signal(text: &str) -> Result<i32, String> {
    let signal = process::parse_signal(text).ok_or("unknown signal; use e.g. KILL, TERM, STOP, CONT or a number")?;
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
