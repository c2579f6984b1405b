//! `cargo stack replay`, `sale` and `bench`: builds the program `load`, of the crate `tests/load`, and becomes it. So
//! those who never ask for load need not build it.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Error, Result, bail};

use crate::layout::root;
use crate::process;
use crate::services::{self, LOAD, Profile};

/// Arguments that the program `load` parses.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// `--help` lists them
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    arguments: Vec<OsString>,
}

/// Replaces this process with the program, which gets the whole command line. Returns only on failure, with the error.
pub(crate) fn run(_: Args) -> Result<Error> {
    let own = env::current_exe().context("cannot locate this program's executable")?;
    // Built like this program, beside it.
    let is_dev = own.parent().is_some_and(|folder| folder.ends_with(Profile::Dev.folder()));
    let profile = if is_dev { Profile::Dev } else { Profile::Release };
    // Not `--package`, for the same reason as in the alias `cargo stack`.
    let args = ["build", "--profile", profile.name(), "--bin", LOAD];
    let built = Command::new(services::cargo()).args(args).current_dir(root()).status().context("cannot run cargo")?;
    if !built.success() {
        bail!("the build of `{LOAD}` failed");
    }
    Ok(process::exec(Command::new(own.with_file_name(LOAD)).args(env::args_os().skip(1))))
}
