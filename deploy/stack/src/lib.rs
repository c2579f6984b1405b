//! `cargo stack`: installs, runs and tests the whole system on one machine.
//!
//! It depends on no crate of the services: it builds and starts their binaries, as an operator would. That keeps its
//! own build to seconds, on a machine that has only a Rust toolchain. Programs that start stacks of their own, or ask a
//! running one, use it as a library: `tests/load`.
//!
//! Invariant: all files are written below one state directory, except for system packages, which are announced.
//! Invariant: every process is recorded by pid and start time as soon as it is spawned, and only processes that match
//! such a record are ever killed.
//! Invariant: servers listen on 127.0.0.1 only.

pub mod cli;
pub mod layout;
pub mod provision;
pub mod size;
pub mod certificates;
pub mod accounts;
pub mod part;
pub mod kafka;
pub mod postgres;
pub mod redis;
pub mod services;
pub mod edge;
pub mod plan;
pub mod process;
pub mod probe;
mod http;
pub mod supervisor;
pub mod control;
pub mod status;
pub mod logs;
mod scale;
pub mod deploy;
pub mod autoscale;
mod cores;
mod observe;
pub mod up;
mod renew;
mod test;
mod projections;
mod report;
mod grow;
mod recover;
mod archive;
mod load;
