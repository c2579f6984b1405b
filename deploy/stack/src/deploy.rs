//! `cargo stack deploy`: replaces the programs of a running stack, one instance at a time.
//!
//! Invariant: an instance ends only after another one of its service is ready, if the log's partitions and the ports
//! allow a further one.
//! Invariant: if a new instance does not get ready, all instances have their previous programs again at the end.
//! Invariant: a view that the build folds in another way waits only between the readiness of the first new projector and
//! the end of the last old one, and for the switch of its rows, which were made before.

mod build;
mod tables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::layout::{Layout, MAX_INSTANCES};
use crate::scale::{Instances, Move};
use crate::services::{Profile, Service};
use tables::Views;

/// Order in which a newer build replaces an older one: an older command-api refuses fields that newer reactors send, and
/// an older query-api may be unable to read what newer projectors write.
const FORWARD: [Service; 3] = [Service::CommandApi, Service::Projector, Service::QueryApi];
/// Order in which an older build replaces a newer one.
const BACK: [Service; 3] = [Service::QueryApi, Service::Projector, Service::CommandApi];

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
        // A build takes minutes, which would be for nothing.
        drop(Instances::of(layout)?);
        let binaries = build::find(&self.build, profile)?;
        let instances = Instances::of(layout)?.ready_within(Duration::from_secs(self.ready_within));
        let begun = Instant::now();
        let order = match self.back || !tables::migrate(layout, &binaries)? {
            true => BACK,
            false => FORWARD,
        };
        tables::snapshots(layout, &binaries)?;
        Rollout { layout, instances, tell: |one: &Move| println!("{one}") }.run(order, &binaries)?;
        println!("deployed {} in {:.1} s", binaries.display(), begun.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Replaces all instances of the running stack by instances of the programs in a folder, and passes each step and its
/// duration to `tell`.
pub fn replace_all(layout: &Layout, binaries: &Path, mut tell: impl FnMut(&str, Duration)) -> Result<()> {
    let instances = Instances::of(layout)?;
    Rollout { layout, instances, tell: |one: &Move| tell(&one.what, one.took) }.run(FORWARD, binaries)
}

/// Replaces all instances of these services by others with the same programs.
pub(crate) fn replace_by_same(layout: &Layout, instances: Instances<'_>, services: &[Service]) -> Result<()> {
    let mut rollout = Rollout { layout, instances, tell: |one: &Move| println!("{one}") };
    FORWARD.into_iter().filter(|service| services.contains(service)).try_for_each(|service| {
        let is = rollout.programs(service)?;
        let numbers: Vec<_> = is.keys().copied().collect();
        rollout.replace(service, &is, &numbers)
    })
}

/// A deployment in progress.
struct Rollout<'a, F> {
    layout: &'a Layout,
    instances: Instances<'a>,
    tell: F,
}

impl<F: FnMut(&Move)> Rollout<'_, F> {
    /// Replaces all instances, or none.
    fn run(&mut self, order: [Service; 3], binaries: &Path) -> Result<()> {
        let mut replaced = Vec::new();
        for service in order {
            let before = self.programs(service)?;
            replaced.push((service, before.clone()));
            let after = before.keys().map(|number| (*number, binaries.to_owned())).collect();
            let numbers: Vec<_> = before.keys().copied().collect();
            let Err(error) = self.replace(service, &after, &numbers) else { continue };
            println!("{error:#}\nrolling back");
            self.instances.be_patient();
            for (service, before) in replaced.iter().rev() {
                self.restore(*service, before).with_context(|| format!("after a failure ({error:#})"))?;
            }
            bail!("the build was not deployed; all instances have their previous programs");
        }
        Ok(())
    }

    /// Replaces those instances of a service that have not their previous program.
    fn restore(&mut self, service: Service, before: &Programs) -> Result<()> {
        let is = self.programs(service)?;
        let differ: Vec<_> = before.keys().copied().filter(|number| is.get(number) != before.get(number)).collect();
        match differ.is_empty() {
            true => {
                self.end_others(service, before)?;
                self.rebuild(service, before, Views::Switch)
            }
            false => self.replace(service, before, &differ),
        }
    }

    /// Replaces instances with these numbers, after a further one has been started if there is room for it.
    fn replace(&mut self, service: Service, wanted: &Programs, numbers: &[u16]) -> Result<()> {
        let is = self.programs(service)?;
        let mut free = (1..=MAX_INSTANCES).filter(|number| !is.contains_key(number) && !wanted.contains_key(number));
        let has_room = is.len() < usize::from(self.instances.most(service));
        self.rebuild(service, wanted, Views::Prepare)?;
        if let Some((number, folder)) = free.next().zip(wanted.values().next()).filter(|_| has_room) {
            self.add(service, number, folder)?;
            self.rebuild(service, wanted, Views::Switch)?;
        }
        for (number, folder) in wanted.iter().filter(|(number, _)| numbers.contains(number)) {
            if self.programs(service)?.contains_key(number) {
                self.remove(service, *number)?;
            }
            self.add(service, *number, folder)?;
            if !has_room {
                self.rebuild(service, wanted, Views::Switch)?;
            }
        }
        self.end_others(service, wanted)
    }

    /// Rebuilds the views that the wanted projectors fold in another way than the present ones.
    fn rebuild(&self, service: Service, wanted: &Programs, part: Views) -> Result<()> {
        match wanted.values().next().filter(|_| service == Service::Projector) {
            Some(folder) => tables::rebuild(self.layout, folder, part),
            None => Ok(()),
        }
    }

    fn end_others(&mut self, service: Service, wanted: &Programs) -> Result<()> {
        for number in self.programs(service)?.into_keys().filter(|number| !wanted.contains_key(number)) {
            let removed = self.remove(service, number);
            // The supervisor itself removes an instance that did not get ready, at this very moment.
            if removed.is_err() && self.programs(service)?.contains_key(&number) {
                return removed;
            }
        }
        Ok(())
    }

    fn add(&mut self, service: Service, number: u16, folder: &Path) -> Result<()> {
        (self.tell)(&self.instances.add(service, number, Some(folder.to_owned()))?);
        Ok(())
    }

    fn remove(&mut self, service: Service, number: u16) -> Result<()> {
        (self.tell)(&self.instances.remove(service, number)?);
        Ok(())
    }

    fn programs(&self, service: Service) -> Result<Programs> {
        let processes = self.instances.status()?.processes.into_iter();
        let of = processes.filter_map(|process| {
            let (of, number) = Service::of_instance(&process.name)?;
            Some((number, process.program.parent()?.to_owned())).filter(|_| of == service)
        });
        Ok(of.collect())
    }
}
