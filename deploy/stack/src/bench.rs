//! `cargo stack bench`: how fast the system is, beside the best that its servers allow and beside others.
//!
//! Nothing is asserted: a number means something only beside the others of the same run.

mod scene;
mod processor_time;
mod peers;
mod tool;
mod figures;
mod comparison;
mod write;
mod read;
mod projection;
mod sale;
mod seckill;
mod cost;
mod overload;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use clap::Subcommand;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::layout::Layout;
use crate::part::Launch;
use crate::plan::{Size, Wanted};
use crate::services::{self, Profile};

/// Beside a stack that runs, and beside a test run.
const BASE_PORT: u16 = 22000;

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// How many commands a second are accepted, and how fast each is answered
    Write(write::Args),
    /// How many queries a second are answered, and how soon a command shows
    Read(read::Args),
    /// How fast the views follow a log that is there already
    Projection(comparison::Args),
    /// How many claims of a sale a second are accepted, how fast orders find their way, and how long a rush takes
    Sale(sale::Args),
    /// The crowd of `cargo stack sale` here and at the textbook's architecture for it, also while parts are killed
    Seckill(seckill::Args),
    /// What a command costs: processor time of each process, from its request until its views show it
    Cost(cost::Args),
    /// What is still done, and how soon, when more is asked for than can be done, and what refusing costs
    Overload(overload::Args),
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
        Bench::Overload(args) => overload::run(&own, &results, args, &cancelled),
        Bench::Projection(args) => projection::run(&own, &results, args, &cancelled),
    };
    if cancelled.is_set() {
        return Ok(ExitCode::from(130));
    }
    finished.map(|()| ExitCode::SUCCESS)
}

/// A subcommand of the projector's own program, beside a stack of the bench's.
fn projector_tool(layout: &Layout, args: &[&str]) -> Result<Launch> {
    let size = Size { brokers: 1, partitions: 12, ..Size::decide(layout, &Wanted::one_of_each())? };
    services::projector_tool(layout, &size, Profile::Release, args)
}

/// Whether somebody wants the bench to end. A stack hears signals only while it runs; a bench begins several.
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
            bail!("the bench was ended");
        }
        Ok(())
    }
}
