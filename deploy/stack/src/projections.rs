//! `cargo stack audit` and `cargo stack rebuild`: whether every view of the stack that runs is what the log says, and
//! how to make it so; `cargo stack except`: how its readers come past what they cannot read. The services' own programs do
//! it; this one knows neither Kafka nor Postgres.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Error, Result, bail};

use crate::control;
use crate::layout::Layout;
use crate::part::Launch;
use crate::plan::{Size, Wanted};
use crate::services::{self, Profile};
use crate::status::Phase;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Audit {
    /// Fold so many rows of each view again, and compare them in Postgres and Redis
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "full")]
    sample: u32,
    /// All rows; they have to fit into memory
    #[arg(long)]
    full: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Rebuild {
    /// `product`, `order`, …: see `GET /v1/views`; several are made in one pass over the log
    #[arg(required = true)]
    views: Vec<String>,
    /// Bring back the rows from before the last rebuild, with what came since
    #[arg(long)]
    rollback: bool,
    /// Switch though rows differ from the live ones
    #[arg(long)]
    accept: bool,
    /// Fold by so many threads, each of which keeps one core busy at most, here or in Postgres [default: half of the cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Let each thread work for so much of the time: after each piece of work it pauses in proportion to how long that took,
    /// which on a busy machine is longer [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    share: Option<u8>,
    /// Fold by a thread for each core, without pauses and more at a time: for a system that has nothing else to do
    #[arg(long, conflicts_with_all = ["threads", "share"])]
    fast: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Except {
    partition: u32,
    offset: u64,
    /// Why no event is lost: it is kept with the exception
    #[arg(long)]
    because: String,
    /// Though it looks like a record of a newer build
    #[arg(long)]
    no_build_reads_it: bool,
}

impl Except {
    pub(crate) fn run(&self, layout: &Layout, profile: Profile) -> Result<Error> {
        let mut args = vec![self.partition.to_string(), self.offset.to_string()];
        args.extend(["--because".to_owned(), self.because.clone()]);
        args.extend(self.no_build_reads_it.then(|| "--no-build-reads-it".to_owned()));
        become_tool(&services::except_tool(layout, &size(layout)?, profile, &args)?)
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

fn become_projector(layout: &Layout, profile: Profile, args: &[&str]) -> Result<Error> {
    become_tool(&services::projector_tool(layout, &size(layout)?, profile, args)?)
}

/// Of the stack that runs.
fn size(layout: &Layout) -> Result<Size> {
    if !control::is_locked(layout)? || control::status(layout)?.state != Phase::Ready {
        bail!("no stack is ready here; `cargo stack up` starts one");
    }
    Size::decide(layout, &Wanted::one_of_each())
}

/// This process becomes that one: it ends as that does.
fn become_tool(launch: &Launch) -> Result<Error> {
    let env = launch.env.iter().map(|(name, value)| (name, value));
    let error = Command::new(&launch.program).args(&launch.args).envs(env).exec();
    Ok(Error::new(error).context(format!("cannot start {}", launch.program.display())))
}
