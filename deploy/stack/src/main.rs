//! `cargo stack`: provisions, runs, tests and tries the whole system on this machine.
//!
//! It knows none of the services: it builds and starts their binaries, as an operator would. So it builds in
//! seconds, on a machine that has no more than a Rust toolchain.
//!
//! Invariant: everything that it makes lies in one state directory, apart from packages that it says it installs.
//! Invariant: every process that it starts is recorded before anything else happens, by pid and start time, and
//! only processes that match such a record are ever ended.
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
