//! `cargo stack scale`: changes the numbers of instances of services while the stack runs, one instance at a time.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::control::{self, Request};
use crate::layout::{Layout, MAX_INSTANCES};
use crate::services::Service;
use crate::size::{Size, Wanted};
use crate::status::{Phase, Status};

/// Time within which a further instance has to be ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Scale {
    /// A service and its number of instances, from 1 on
    #[arg(required = true, value_name = "SERVICE=NUMBER", value_parser = target)]
    targets: Vec<(Service, u16)>,
}

/// The instances of a running stack, which only one command at a time changes.
pub(crate) struct Instances<'a> {
    layout: &'a Layout,
    partitions: u16,
    ready_within: Duration,
    _turn: File,
}

/// Duration of starting or ending one instance.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    pub(crate) what: String,
    pub(crate) took: Duration,
}

impl Scale {
    pub(crate) fn run(&self, layout: &Layout) -> Result<()> {
        let instances = Instances::of(layout)?;
        for (service, wanted) in &self.targets {
            instances.check(*service, *wanted)?;
        }
        for (service, wanted) in &self.targets {
            let moves = instances.set(*service, *wanted)?;
            if moves == 0 {
                println!("{} has {wanted} instances already", service.name());
            }
        }
        Ok(())
    }
}

impl<'a> Instances<'a> {
    /// Fails if no stack is ready, or if another command changes its instances.
    pub(crate) fn of(layout: &'a Layout) -> Result<Self> {
        if !control::is_locked(layout)? || control::status(layout)?.state != Phase::Ready {
            bail!("no stack is ready; start one with `cargo stack up`");
        }
        let path = layout.state.join("scale.lock");
        let turn = File::options().create(true).append(true).open(&path);
        let turn = turn.with_context(|| format!("cannot write {}", path.display()))?;
        match turn.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another `cargo stack scale`, `autoscale`, `deploy` or `renew` is changing this stack; wait until it has ended"
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        let partitions = Size::decide(layout, &Wanted::one_of_each())?.partitions;
        Ok(Self { layout, partitions, ready_within: READY_WITHIN, _turn: turn })
    }

    /// Sets the time within which further instances have to be ready.
    pub(crate) fn ready_within(self, ready_within: Duration) -> Self {
        Self { ready_within, ..self }
    }

    /// Gives further instances at least the usual time.
    pub(crate) fn be_patient(&mut self) {
        self.ready_within = self.ready_within.max(READY_WITHIN);
    }

    /// Returns the largest possible number of instances of a service.
    pub(crate) fn most(&self, service: Service) -> u16 {
        match service {
            Service::CommandApi | Service::Projector => self.partitions.min(MAX_INSTANCES),
            Service::QueryApi => MAX_INSTANCES,
        }
    }

    /// Refuses a number of instances that the stack cannot have.
    pub(crate) fn check(&self, service: Service, wanted: u16) -> Result<()> {
        let (name, most) = (service.name(), self.most(service));
        ensure!(wanted > 0, "{name}=0 would leave nobody to answer; the smallest number is 1");
        ensure!(
            wanted <= most,
            "{name}={wanted} is too many; at most {most}{}",
            match most < MAX_INSTANCES {
                true => " because an instance without a partition has nothing to do; more partitions need a new log",
                false => " fit into the stack's ports",
            }
        );
        Ok(())
    }

    pub(crate) fn status(&self) -> Result<Status> {
        control::status(self.layout)
    }

    /// Returns the numbers of the instances that exist.
    pub(crate) fn numbers(&self, service: Service) -> Result<BTreeSet<u16>> {
        let names = self.status()?.processes.into_iter().map(|process| process.name);
        Ok(names.filter_map(|name| Service::of_instance(&name)).filter(|of| of.0 == service).map(|of| of.1).collect())
    }

    /// Starts or ends instances until there are as many as wanted. Returns the number of moves.
    pub(crate) fn set(&self, service: Service, wanted: u16) -> Result<usize> {
        let mut moves = 0;
        loop {
            let numbers = self.numbers(service)?;
            let moved = if numbers.len() < usize::from(wanted) {
                let free = (1..).find(|number| !numbers.contains(number)).expect("the numbers are without end");
                self.add(service, free, None)?
            } else if numbers.len() > usize::from(wanted) {
                self.remove(service, *numbers.last().expect("there are more than wanted"))?
            } else {
                return Ok(moves);
            };
            println!("{moved}");
            moves += 1;
        }
    }

    /// Starts an instance and waits until it is ready and gets requests.
    pub(crate) fn add(&self, service: Service, number: u16, binaries: Option<PathBuf>) -> Result<Move> {
        let begun = Instant::now();
        let within_secs = self.ready_within.as_secs();
        control::tell(self.layout, &Request::Add { service, number, binaries, within_secs })?;
        Ok(Move { what: format!("{} is ready", service.instance_name(number)), took: begun.elapsed() })
    }

    /// Drains and ends an instance.
    pub(crate) fn remove(&self, service: Service, number: u16) -> Result<Move> {
        let begun = Instant::now();
        let name = service.instance_name(number);
        control::tell(self.layout, &Request::Remove { name: name.clone() })?;
        Ok(Move { what: format!("{name} has ended"), took: begun.elapsed() })
    }
}

impl std::fmt::Display for Move {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<28} after {:.1} s", self.what, self.took.as_secs_f64())
    }
}

pub(crate) fn target(text: &str) -> Result<(Service, u16), String> {
    let names = || Service::ALL.map(Service::name).join(", ");
    let (name, number) = text.split_once('=').ok_or("write SERVICE=NUMBER, e.g. query-api=3")?;
    let service = Service::ALL.into_iter().find(|service| service.name() == name);
    let service = service.ok_or_else(|| format!("no service named `{name}`; the services are {}", names()))?;
    Ok((service, number.parse().map_err(|_| format!("`{number}` is no number of instances"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_names_a_service_and_a_number() {
        assert_eq!(target("query-api=3"), Ok((Service::QueryApi, 3)));
        for (text, problem) in [("query-api", "SERVICE=NUMBER"), ("edge=2", "the services are"), ("projector=x", "`x`")]
        {
            assert!(target(text).unwrap_err().contains(problem), "{text}");
        }
    }
}
