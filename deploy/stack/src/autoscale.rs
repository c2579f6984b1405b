//! `cargo stack autoscale`: changes the numbers of instances by the rules that KEDA applies in a cluster.
//!
//! Each second it reads the metrics of every instance and the processor time of its process. A tier grows once a rule
//! has asked for it for some time, and shrinks once no rule has needed its last instance for much longer. Each tier is
//! followed by a thread of its own, so that one whose instance hands over its partitions does not delay the others.

mod metrics;
mod rules;
mod tier;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::cores;
use crate::http;
use crate::layout::Layout;
use crate::process;
use crate::scale::{Instances, target};
use crate::services::Service;
use crate::status::{Process, State};
use metrics::Sample;
use rules::RULES;
use tier::Tier;

/// Interval between looks at the metrics, which is divided like the times of the rules but never shorter than
/// [`SHORTEST_LOOK`].
const LOOK: Duration = Duration::from_secs(1);
const SHORTEST_LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, clap::Args)]
pub struct Autoscale {
    /// Largest number of instances of a service, 4 by default
    #[arg(long, value_name = "SERVICE=NUMBER", value_parser = target)]
    at_most: Vec<(Service, u16)>,
    /// Smallest number of instances of a service, 1 by default
    #[arg(long, value_name = "SERVICE=NUMBER", value_parser = target)]
    at_least: Vec<(Service, u16)>,
    /// Divides all times of the rules, to try them without waiting
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor)]
    hurry: f64,
}

/// A change of the number of instances.
#[derive(Debug, Clone)]
pub struct Change {
    pub service: Service,
    pub from: u16,
    pub to: u16,
    /// Name of the rule that asked for it.
    pub rule: &'static str,
    /// Duration until the last instance was ready or had ended.
    pub took: Duration,
}

impl Autoscale {
    /// Returns the rules' limits for all services alike, with times divided by `hurry`.
    pub fn between(least: u16, most: u16, hurry: f64) -> Self {
        let of = |number| Service::ALL.map(|service| (service, number)).to_vec();
        Self { at_most: of(most), at_least: of(least), hurry }
    }

    /// Keeps at least so many instances of a service.
    #[must_use]
    pub fn keeping(mut self, service: Service, least: u16) -> Self {
        self.at_least.insert(0, (service, least));
        self
    }

    /// Scales the running stack until `ended`, and passes each change to `tell`.
    pub fn run(&self, layout: &Layout, ended: impl Fn() -> bool + Sync, tell: impl FnMut(Change)) -> Result<()> {
        let instances = Instances::of(layout)?;
        let cores = cores::of(layout);
        let mut tiers = Vec::new();
        for service in Service::ALL {
            let of = |given: &[(Service, u16)], or| given.iter().find(|of| of.0 == service).map_or(or, |of| of.1);
            let (least, most) = (of(&self.at_least, 1), of(&self.at_most, 4.min(instances.most(service))));
            instances.check(service, least)?;
            instances.check(service, most.max(least))?;
            tiers.push(Tier::new(service, least..=most.max(least), self.hurry, cores));
        }
        let (changed, changes) = mpsc::channel();
        let has_failed = AtomicBool::new(false);
        let ended = || ended() || has_failed.load(Ordering::Relaxed);
        thread::scope(|scope| {
            let follow = |tier| {
                let (changed, instances, ended, has_failed) = (changed.clone(), &instances, &ended, &has_failed);
                scope.spawn(move || {
                    let followed = self.follow(tier, instances, ended, &changed);
                    has_failed.fetch_or(followed.is_err(), Ordering::Relaxed);
                    followed
                })
            };
            let followed: Vec<_> = tiers.into_iter().map(follow).collect();
            drop(changed);
            changes.iter().for_each(tell);
            followed.into_iter().try_for_each(|tier| tier.join().map_err(|_| anyhow!("a thread panicked"))?)
        })
    }

    fn follow(
        &self,
        mut tier: Tier,
        instances: &Instances<'_>,
        ended: &impl Fn() -> bool,
        changed: &Sender<Change>,
    ) -> Result<()> {
        let pause = LOOK.div_f64(self.hurry).max(SHORTEST_LOOK);
        let mut before = BTreeMap::new();
        while !ended() {
            let now = look(instances, tier.service)?;
            let from = instances.numbers(tier.service)?.len();
            let from = u16::try_from(from).expect("at most 32 instances");
            tier.note(&before, &now, from);
            if let Some((to, rule)) = tier.wanted(from) {
                let begun = Instant::now();
                instances.set(tier.service, to)?;
                tier.has_moved();
                // The receiver outlives this thread.
                let _ = changed.send(Change { service: tier.service, from, to, rule, took: begun.elapsed() });
            }
            before = now;
            thread::sleep(pause);
        }
        Ok(())
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (service, Self { from, to, rule, .. }) = (self.service.name(), self);
        write!(f, "{service}: {from} -> {to} ({rule}), took {:.1} s", self.took.as_secs_f64())
    }
}

/// Returns what each ready instance reports that the rules of a service read, by its name.
fn look(instances: &Instances<'_>, service: Service) -> Result<BTreeMap<String, Sample>> {
    let processes = instances.status()?.processes.into_iter();
    let is_read = |process: &Process| {
        Service::of_instance(&process.name).is_some_and(|(of, _)| rules::reads(service, of))
            && process.state == State::Ready
    };
    // An instance that does not answer counts with the next look.
    Ok(processes.filter(is_read).filter_map(|process| Some((process.name.clone(), sample(&process)?))).collect())
}

fn sample(process: &Process) -> Option<Sample> {
    let (status, text) = http::get(*process.ports.get("admin")?, "/metrics").ok()?;
    let cpu_seconds = process::cpu_seconds(process.pid?)?;
    (status == 200).then(|| Sample { at: Instant::now(), pid: process.pid, text, cpu_seconds })
}

fn factor(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|factor| *factor >= 1.0).ok_or_else(|| String::from("must be a number from 1 on"))
}
