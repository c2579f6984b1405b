//! `cargo stack bench`: how fast the system is, beside the best that its servers allow and beside others.
//!
//! Nothing is asserted: a number means something only beside the others of the same run.

mod scene;
mod peers;
mod tool;
mod write;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use clap::Subcommand;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::layout::Layout;

/// Beside a stack that runs, and beside a test run.
const BASE_PORT: u16 = 22000;

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// How many commands a second are accepted, and how fast each is answered
    Write(write::Args),
}

pub(crate) fn run(layout: &Layout, base_port: Option<u16>, bench: &Bench) -> Result<ExitCode> {
    let results = layout.state.join("bench");
    let own = Layout::new(Some(&layout.state.join("bench-stack")), Some(base_port.unwrap_or(BASE_PORT)))?;
    let cancelled = Cancelled::by_signals()?;
    let finished = match bench {
        Bench::Write(args) => write::run(&own, &results, args, &cancelled),
    };
    if cancelled.is_set() {
        return Ok(ExitCode::from(130));
    }
    finished.map(|()| ExitCode::SUCCESS)
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
