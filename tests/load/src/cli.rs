//! The command line, a part of that of `cargo stack`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stack::cli::{Options, exit_code};

use crate::bench::{self, Bench};
use crate::{replay, sale};

/// Generates load for a stack, and checks or measures the results.
#[derive(Parser)]
#[command(name = "cargo stack", bin_name = "cargo stack")]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send a real shop's orders through the system and compare every view with totals computed from the file
    Replay(replay::Args),
    /// Simulate a flash sale on the running stack (buyers, watchers, payments), then check the results against the log
    Sale(sale::Args),
    /// Measure performance, on a dedicated stack; stop other stacks first, because their load distorts the figures
    #[command(subcommand)]
    Bench(Bench),
}

pub fn run(cli: Cli) -> ExitCode {
    let Options { base_port, profile, .. } = cli.options;
    exit_code(cli.options.layout().and_then(|layout| match cli.command {
        Command::Replay(args) => replay::run(layout, profile, &args),
        Command::Sale(args) => sale::run(&layout, &args),
        Command::Bench(bench) => bench::run(&layout, base_port, &bench),
    }))
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
