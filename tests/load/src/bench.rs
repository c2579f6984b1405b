//! `cargo stack bench`: measures the system against the limits of its servers and against other systems.
//!
//! No absolute numbers are asserted: a figure is meaningful only next to the others of the same run.

mod environment;
mod processor_time;
mod peers;
mod programs;
mod tool;
mod table;
mod results;
mod comparison;
mod write;
mod read;
mod projection;
mod sale;
mod seckill;
mod cost;
mod wires;
mod overload;
mod elastic;
mod start;
mod partitions;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use clap::Subcommand;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use stack::layout::Layout;
use stack::part::Launch;
use stack::services::{self, Profile};
use stack::size::{Size, Wanted};

/// Base port of the bench's stack, clear of a running stack and of a test run.
const BASE_PORT: u16 = 22000;

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Measure commands: throughput and latency
    Write(write::Args),
    /// Measure queries: throughput, and the delay until a command is visible
    Read(read::Args),
    /// Measure how fast projectors fold an existing log
    Projection(comparison::Args),
    /// Measure a flash sale: claims per second, orders from placement to confirmation, takeover, and a whole rush
    Sale(sale::Args),
    /// Run the crowd of `cargo stack sale` against this system and a textbook architecture, also while parts are killed
    Seckill(seckill::Args),
    /// Measure the processor time of a command in each process, from its request until it is visible
    Cost(cost::Args),
    /// Measure what TLS and accounts cost on each wire, on a secured stack and on a plain one in turn
    Wires(wires::Args),
    /// Measure throughput and latency under overload, and the cost of a refusal
    Overload(overload::Args),
    /// Measure how instances come and go under a read rush and a write rush, and a deployment; draws a picture
    Elastic(elastic::Args),
    /// Measure how long each service takes from its start until it is ready, with an empty log and with a long one
    Start(start::Args),
    /// Compare logs with different numbers of partitions: commands, memory, and time from start to ready
    Partitions(partitions::Args),
}

pub(crate) fn run(layout: &Layout, base_port: Option<u16>, bench: &Bench) -> Result<ExitCode> {
    let results = layout.state.join("bench");
    let own = Layout::new(Some(&layout.state.join("bench-stack")), Some(base_port.unwrap_or(BASE_PORT)))?;
    let cancelled = Cancelled::by_signals()?;
    let finished = match bench {
        Bench::Write(args) => write::run(&own, &results, args, &cancelled),
        Bench::Read(args) => read::run(&own, &results, args, &cancelled),
        Bench::Sale(args) => sale::run(&own, &results, args, &cancelled),
        Bench::Seckill(args) => seckill::run(&own, &results, args, &cancelled),
        Bench::Cost(args) => cost::run(&own, &results, args, &cancelled),
        Bench::Wires(args) => wires::run(&own, &results, args, &cancelled),
        Bench::Overload(args) => overload::run(&own, &results, args, &cancelled),
        Bench::Elastic(args) => elastic::run(&own, &results, args, &cancelled),
        Bench::Start(args) => start::run(&own, &results, args, &cancelled),
        Bench::Partitions(args) => partitions::run(&own, &results, args, &cancelled),
        Bench::Projection(args) => projection::run(&own, &results, args, &cancelled),
    };
    if cancelled.is_set() {
        return Ok(ExitCode::from(130));
    }
    finished.map(|()| ExitCode::SUCCESS)
}

/// Returns the launch of a projector subcommand against the bench's stack.
fn projector_tool(layout: &Layout, args: &[&str]) -> Result<Launch> {
    let size = Size { brokers: 1, partitions: 12, ..Size::decide(layout, &Wanted::one_of_each())? };
    services::projector_tool(layout, &size, Profile::Release, args)
}

/// Flag that a signal has cancelled the bench. A supervisor handles signals only while its stack runs, and a bench runs
/// several stacks.
struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    fn by_signals() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, flag.clone())?;
        }
        Ok(Self(flag))
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<()> {
        if self.is_set() {
            bail!("the bench was cancelled");
        }
        Ok(())
    }
}
