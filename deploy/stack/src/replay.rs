use std::process::ExitCode;
use anyhow::Result;
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {}
pub(crate) fn run(_: crate::layout::Layout, _: crate::services::Profile, _: &Args) -> Result<ExitCode> { todo!() }
