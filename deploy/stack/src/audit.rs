//! `cargo stack audit`: whether every view of the stack that runs is what the log says. The projector's own program
//! does it; this one knows neither Kafka nor Postgres.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Error, Result, bail};

use crate::control;
use crate::layout::Layout;
use crate::plan::{Size, Wanted};
use crate::services::{self, Profile};
use crate::status::Phase;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Fold so many rows of each view again, and compare them in Postgres and Redis
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "full")]
    sample: u32,
    /// All rows; they have to fit into memory
    #[arg(long)]
    full: bool,
}

/// This process becomes the audit: it ends as that does.
pub(crate) fn run(layout: &Layout, profile: Profile, args: &Args) -> Result<Error> {
    if !control::is_locked(layout)? || control::status(layout)?.state != Phase::Ready {
        bail!("no stack is ready here; `cargo stack up` starts one");
    }
    let size = Size::decide(layout, &Wanted::one_of_each())?;
    let what = if args.full { vec!["--full".to_owned()] } else { vec!["--sample".to_owned(), args.sample.to_string()] };
    let launch = services::audit(layout, &size, profile, what)?;
    let error = Command::new(&launch.program).args(&launch.args).envs(launch.env).exec();
    Ok(Error::new(error).context(format!("cannot start {}", launch.program.display())))
}
