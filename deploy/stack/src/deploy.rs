//! `cargo stack deploy`: replaces the programs of a running stack, one instance at a time.
//!
//! Invariant: an instance ends only after another one of its service is ready, if the log's partitions and the ports
//! allow a further one.
//! Invariant: if a new instance does not get ready, all instances have their previous programs again at the end.

mod build;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::layout::{Layout, MAX_INSTANCES};
use crate::scale::Instances;
use crate::services::{self, Profile, Service};
use crate::size::{Size, Wanted};

/// Order in which a newer build replaces an older one: an older command-api refuses fields that newer reactors send, and
/// an older query-api may be unable to read what newer projectors write.
const FORWARD: [Service; 3] = [Service::CommandApi, Service::Projector, Service::QueryApi];
/// Order in which an older build replaces a newer one.
const BACK: [Service; 3] = [Service::QueryApi, Service::Projector, Service::CommandApi];
/// Part of the error with which a build refuses tables that have migrations which it does not know.
const NEWER_TABLES: &str = "is missing from the filesystem";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Deploy {
    /// Folder with the programs command-api, projector and query-api, or a git revision, which is built first
    build: String,
    /// Replace the services in the order for an older build; implied if the tables are newer than the build
    #[arg(long)]
    back: bool,
    /// Seconds within which a new instance has to be ready; otherwise everything is rolled back
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=240))]
    ready_within: u64,
}

/// Folders of the programs of a service's instances, by number.
type Programs = BTreeMap<u16, PathBuf>;

impl Deploy {
    pub(crate) fn run(&self, layout: &Layout, profile: Profile) -> Result<()> {
        let binaries = build::find(&self.build, profile)?;
        let instances = Instances::of(layout)?.ready_within(Duration::from_secs(self.ready_within));
        let begun = Instant::now();
        let order = match self.back || !migrate(layout, &binaries)? {
            true => BACK,
            false => FORWARD,
        };
        let mut replaced = Vec::new();
        for service in order {
            let before = programs(&instances, service)?;
            replaced.push((service, before.clone()));
            let after = before.keys().map(|number| (*number, binaries.clone())).collect();
            let Err(error) = roll(&instances, service, &after) else { continue };
            println!("{error:#}\nrolling back");
            for (service, before) in replaced.iter().rev() {
                restore(&instances, *service, before).with_context(|| format!("after a failure ({error:#})"))?;
            }
            bail!("the build was not deployed; all instances have their previous programs");
        }
        println!("deployed {} in {:.1} s", binaries.display(), begun.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Replaces each instance of a service by one with the given program.
fn roll(instances: &Instances<'_>, service: Service, wanted: &Programs) -> Result<()> {
    replace(instances, service, wanted, &wanted.keys().copied().collect::<Vec<_>>())
}

/// Replaces those instances of a service that have not their previous program.
fn restore(instances: &Instances<'_>, service: Service, before: &Programs) -> Result<()> {
    let is = programs(instances, service)?;
    let differ: Vec<_> = before.keys().copied().filter(|number| is.get(number) != before.get(number)).collect();
    match differ.is_empty() {
        true => end_others(instances, service, before),
        false => replace(instances, service, before, &differ),
    }
}

/// Replaces instances with these numbers, after a further one has been started if there is room for it.
fn replace(instances: &Instances<'_>, service: Service, wanted: &Programs, numbers: &[u16]) -> Result<()> {
    let is = programs(instances, service)?;
    let mut free = (1..=MAX_INSTANCES).filter(|number| !is.contains_key(number) && !wanted.contains_key(number));
    let has_room = is.len() < usize::from(instances.most(service));
    if let Some((number, folder)) = free.next().zip(wanted.values().next()).filter(|_| has_room) {
        println!("{}", instances.add(service, number, Some(folder.clone()))?);
    }
    for number in numbers {
        if programs(instances, service)?.contains_key(number) {
            println!("{}", instances.remove(service, *number)?);
        }
        println!("{}", instances.add(service, *number, wanted.get(number).cloned())?);
    }
    end_others(instances, service, wanted)
}

fn end_others(instances: &Instances<'_>, service: Service, wanted: &Programs) -> Result<()> {
    for number in programs(instances, service)?.into_keys().filter(|number| !wanted.contains_key(number)) {
        println!("{}", instances.remove(service, number)?);
    }
    Ok(())
}

fn programs(instances: &Instances<'_>, service: Service) -> Result<Programs> {
    let processes = instances.status()?.processes.into_iter();
    let of = processes.filter_map(|process| {
        let (of, number) = Service::of_instance(&process.name)?;
        Some((number, process.program.parent()?.to_owned())).filter(|_| of == service)
    });
    Ok(of.collect())
}

/// Applies the migrations of a build. Returns `false` if the tables have some that it does not know: it is older.
fn migrate(layout: &Layout, binaries: &Path) -> Result<bool> {
    let size = Size::decide(layout, &Wanted::one_of_each())?;
    let launch = services::projector_tool_of(binaries, layout, &size, &["migrate"])?;
    let env = launch.env.iter().map(|(name, value)| (name, value));
    let output = Command::new(&launch.program).args(&launch.args).envs(env).output();
    let output = output.with_context(|| format!("cannot start {}", launch.program.display()))?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    match output.status.success() {
        true => println!("the tables have the build's migrations"),
        false if said.contains(NEWER_TABLES) => println!("the tables are newer than the build; they stay as they are"),
        false => bail!("the build's migrations failed: {}", said.trim()),
    }
    Ok(output.status.success())
}
