//! `cargo stack`: installs, runs, tests and benchmarks the whole system on one machine.
//!
//! It depends on no crate of the services: it builds and starts their binaries, as an operator would. That keeps its
//! own build to seconds, on a machine that has only a Rust toolchain.
//!
//! Invariant: all files are written below one state directory, except for system packages, which are announced.
//! Invariant: every process is recorded by pid and start time as soon as it is spawned, and only processes that match
//! such a record are ever killed.
//! Invariant: servers listen on 127.0.0.1 only.

mod cli;
mod layout;
mod provision;
mod part;
mod kafka;
mod postgres;
mod redis;
mod services;
mod edge;
mod plan;
mod process;
mod probe;
mod supervisor;
mod control;
mod status;
mod logs;
mod up;
mod test;
mod replay;
mod sale;
mod projections;
mod bench;

use clap::Parser;

fn main() -> std::process::ExitCode {
    cli::run(cli::Cli::parse())
}
