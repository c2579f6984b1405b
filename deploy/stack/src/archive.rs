//! `cargo stack archive` copies the log of the running stack to a folder; `cargo stack restore` writes it from there to
//! the empty Kafka of a stack that does not run yet. Both run the subcommands of command-api.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Error, Result, bail};

use crate::layout::Layout;
use crate::services::{self, Profile};
use crate::size::{Size, Wanted};
use crate::supervisor::{Ended, Supervisor, Words};
use crate::{control, logs, plan, process, projections, provision};

/// File of an archive that says which log it is of.
const MANIFEST: &str = "archive.json";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Archive {
    /// Folder of the archive, which is made if there is none
    folder: PathBuf,
    /// Stop at the end that the log has now, instead of following it until Ctrl-C
    #[arg(long)]
    once: bool,
    /// Seconds between two ends of the log that are archived [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "once")]
    every: Option<u32>,
    /// Only report what is damaged; compares with the journal if a stack runs
    #[arg(long, conflicts_with_all = ["once", "every"])]
    verify: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Restore {
    /// Folder of the archive
    folder: PathBuf,
    /// Remove the data of this stack first
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    wanted: Wanted,
}

impl Archive {
    pub(crate) fn run(&self, layout: &Layout, profile: Profile) -> Result<Error> {
        let size = if self.verify { projections::size(layout).ok() } else { Some(projections::size(layout)?) };
        let mut args = vec!["archive".to_owned(), self.folder.to_string_lossy().into_owned()];
        for (is_wanted, option) in [(self.once, "--once"), (self.verify, "--verify")] {
            args.extend(is_wanted.then(|| option.to_owned()));
        }
        args.extend(self.every.into_iter().flat_map(|seconds| ["--every".to_owned(), seconds.to_string()]));
        let launch = services::archive_tool(layout, size.as_ref(), profile, args)?;
        let env = launch.env.iter().map(|(name, value)| (name, value));
        Ok(process::exec(Command::new(&launch.program).args(&launch.args).envs(env)))
    }
}

impl Restore {
    pub(crate) fn run(self, layout: &Layout, profile: Profile) -> Result<ExitCode> {
        let Self { folder, fresh, wanted } = self;
        let partitions = partitions(&folder)?;
        layout.create()?;
        let Some(_lock) = control::lock(layout)? else {
            bail!("a stack is running in {}; stop it with `cargo stack down`", layout.state.display());
        };
        process::end_leftovers(layout);
        if fresh {
            layout.clear_data()?;
        }
        logs::rotate(layout);
        let tools = provision::ensure(&layout.log("apt"))?;
        let size = Size::decide(layout, &wanted.for_log(partitions))?;
        let parts = plan::restore(layout, &tools, &size, profile, &folder)?;
        let supervisor = Supervisor::new(layout.clone(), parts, String::new(), Words::All)?.until_ready();
        let mut is_complete = false;
        let ended = supervisor.run(|_| is_complete = true)?;
        if !is_complete || ended == Ended::Signalled {
            bail!("the restore was stopped; run it again without --fresh to continue it");
        }
        println!("The log is restored. `cargo stack up` starts the services, which fold their views from it.");
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the number of partitions of the archived log.
fn partitions(folder: &Path) -> Result<u16> {
    let path = folder.join(MANIFEST);
    let text =
        fs::read(&path).with_context(|| format!("{} is no archive: cannot read {MANIFEST}", folder.display()))?;
    let manifest: serde_json::Value = serde_json::from_slice(&text).context("the archive is damaged")?;
    let partitions = manifest["partitions"].as_u64().and_then(|partitions| partitions.try_into().ok());
    partitions.with_context(|| format!("{} names no number of partitions", path.display()))
}
