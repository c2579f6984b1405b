//! Programs that archive the log of a stack, and restore it.

use std::path::Path;

use anyhow::Result;

use super::{BUILD, Common, Profile, binaries, build, local};
use crate::accounts::Account;
use crate::kafka;
use crate::layout::{Layout, MAX_INSTANCES};
use crate::part::{Launch, Output, Part};
use crate::size::Size;

/// Returns the launch of `command-api archive`, against the running stack if its size is given.
pub(crate) fn archive_tool(
    layout: &Layout,
    size: Option<&Size>,
    profile: Profile,
    args: Vec<String>,
) -> Result<Launch> {
    let launch = Launch::new(binaries(profile)?.join("command-api"), args).env("LOG_FORMAT", "text");
    let Some(size) = size else { return Ok(launch) };
    // The port of an instance that there can hardly be.
    let admin = local(layout.ports.command_admin(MAX_INSTANCES));
    Ok(Common::of(layout, size)?.add_to(launch, Account::Owner).env("ADMIN_ADDR", admin))
}

/// Returns the parts that write an archive to the topics of a stack without services.
pub(crate) fn restore(layout: &Layout, size: &Size, profile: Profile, folder: &Path) -> Result<Vec<Part>> {
    let common = Common::of(layout, size)?;
    let args = ["restore".to_owned(), folder.to_string_lossy().into_owned()];
    // Kafka has just started, and refuses some requests at first.
    let mut launch = Launch::new(binaries(profile)?.join("command-api"), args).env("LOG", "error");
    launch.output = Output::Caller;
    let build = (!size.as_built).then(|| build(profile));
    let restore = Part::task("restore", common.add_to(launch, Account::Owner));
    let restore = restore.needing((1..=size.brokers).map(kafka::name)).needing(build.as_ref().map(|_| BUILD));
    let restore = restore.needing(common.secured.as_ref().map(|_| kafka::RULES));
    Ok(build.into_iter().chain([restore]).collect())
}
