//! `cargo stack audit` and `cargo stack rebuild` compare the views of the running stack with the log and rebuild them;
//! `cargo stack except` makes readers of the log skip an unreadable record. All three run the services' own
//! subcommands, because this program is no client of Kafka or Postgres.

use std::path::Path;
use std::process::Command;

use anyhow::{Error, Result, bail};

use crate::control;
use crate::layout::Layout;
use crate::part::Launch;
use crate::process;
use crate::services::{self, Profile, Service};
use crate::size::{Size, Wanted};
use crate::status::Phase;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Audit {
    /// Number of rows of each view to fold again and compare, in Postgres and Redis
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "full")]
    sample: u32,
    /// Compare all rows, which must fit into memory
    #[arg(long)]
    full: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Rebuild {
    /// Views to rebuild, e.g. `product`; `GET /v1/views` lists them; several are rebuilt in one pass over the log
    #[arg(required = true)]
    views: Vec<String>,
    /// Restore the rows from before the last rebuild, brought up to date
    #[arg(long)]
    rollback: bool,
    /// Swap in the rebuilt rows even if they differ from the live ones
    #[arg(long)]
    accept: bool,
    /// Number of folding threads, each of which uses at most one core, here or in Postgres [default: half of the cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Share of the time that each thread works: after each piece of work it pauses in proportion to its duration, and
    /// so for longer on a busy machine [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    share: Option<u8>,
    /// Use one thread per core, no pauses and larger batches; meant for a system without other load
    #[arg(long, conflicts_with_all = ["threads", "share"])]
    fast: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Except {
    /// Partition of the record
    partition: u32,
    /// Offset of the record
    offset: u64,
    /// Reason why skipping the record loses no event; stored with the exception
    #[arg(long)]
    because: String,
    /// Skip the record even if it appears to come from a newer build
    #[arg(long)]
    no_build_reads_it: bool,
}

impl Except {
    pub(crate) fn run(&self, layout: &Layout, profile: Profile) -> Result<Error> {
        let mut args = vec![self.partition.to_string(), self.offset.to_string()];
        args.extend(["--because".to_owned(), self.because.clone()]);
        args.extend(self.no_build_reads_it.then(|| "--no-build-reads-it".to_owned()));
        Ok(become_tool(&services::except_tool(layout, &size(layout)?, profile, &args)?))
    }
}

impl Audit {
    pub(crate) fn run(&self, layout: &Layout, profile: Profile) -> Result<Error> {
        let sample = self.sample.to_string();
        let args = if self.full { vec!["audit", "--full"] } else { vec!["audit", "--sample", &sample] };
        become_projector(layout, profile, &args)
    }
}

impl Rebuild {
    pub(crate) fn run(&self, layout: &Layout, profile: Profile) -> Result<Error> {
        let mut args = vec!["rebuild".to_owned()];
        args.extend(self.views.iter().cloned());
        for (is_wanted, option) in [(self.rollback, "--rollback"), (self.accept, "--accept"), (self.fast, "--fast")] {
            args.extend(is_wanted.then(|| option.to_owned()));
        }
        for (option, value) in [("--threads", self.threads), ("--share", self.share.map(u16::from))] {
            args.extend(value.into_iter().flat_map(|value| [option.to_owned(), value.to_string()]));
        }
        become_projector(layout, profile, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// Runs the program of the projectors that run, because another build may fold views in another way.
fn become_projector(layout: &Layout, profile: Profile, args: &[&str]) -> Result<Error> {
    let size = size(layout)?;
    let processes = control::status(layout)?.processes.into_iter();
    let is_projector = |name: &str| Service::of_instance(name).is_some_and(|of| of.0 == Service::Projector);
    let running = processes.filter(|process| is_projector(&process.name)).map(|process| process.program).next_back();
    let launch = match running.as_deref().and_then(Path::parent) {
        Some(binaries) => services::projector_tool_of(binaries, layout, &size, args)?,
        None => services::projector_tool(layout, &size, profile, args)?,
    };
    Ok(become_tool(&launch))
}

/// Returns the size of the running stack. Fails unless the stack is ready.
pub(crate) fn size(layout: &Layout) -> Result<Size> {
    if !control::is_locked(layout)? || control::status(layout)?.state != Phase::Ready {
        bail!("no stack is ready; start one with `cargo stack up`");
    }
    Size::decide(layout, &Wanted::one_of_each())
}

/// Replaces this process with the tool, whose exit status becomes its own. Returns only on failure, with the error.
fn become_tool(launch: &Launch) -> Error {
    let env = launch.env.iter().map(|(name, value)| (name, value));
    process::exec(Command::new(&launch.program).args(&launch.args).envs(env))
}
