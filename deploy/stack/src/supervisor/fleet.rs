//! Instances of services that come and go while the stack runs.
//!
//! An instance joins the edge when it is ready. One that leaves is first taken out of the edge, serves the requests that
//! are on their way to it, and then gets the signal to stop.

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::Supervisor;
use super::member::{Member, Stage};
use crate::control::Reply;
use crate::edge::peers::{self, Peers};
use crate::services::{self, Service};
use crate::size::Size;
use crate::status::Phase;
use crate::{logs, observe};

/// Time for which an instance serves after the edge has ceased to send requests to it: the edge may have chosen it for a
/// request that has not arrived yet.
const LINGERS: Duration = Duration::from_millis(200);

pub(super) struct Fleet {
    size: Size,
    /// Folder of the programs of further instances.
    binaries: PathBuf,
    /// Instances to which the edge sends requests.
    in_edge: Peers,
}

impl Fleet {
    pub(super) fn new(size: Size, binaries: PathBuf, members: &[Member]) -> Self {
        let in_edge = members.iter().filter_map(|member| Service::of_instance(&member.part.name)).collect();
        Self { size, binaries, in_edge }
    }
}

impl Supervisor {
    /// Starts a further instance. Returns `None` if the reply is sent later.
    pub(super) fn add(
        &mut self,
        (service, number): (Service, u16),
        binaries: Option<PathBuf>,
        within: Duration,
        reply: &Sender<Reply>,
    ) -> Option<Reply> {
        let name = service.instance_name(number);
        let Some(fleet) = &mut self.fleet else {
            return Some(Reply::Failed(String::from("the instances of this stack are fixed")));
        };
        if self.phase != Phase::Ready {
            return Some(Reply::Failed(String::from("the stack is still starting; try again when it is ready")));
        }
        let known = self.members.iter().position(|member| member.part.name == name);
        if known.is_some_and(|index| !self.members[index].is_forgotten()) {
            return Some(Reply::Failed(format!("{name} exists already")));
        }
        if let Some(binaries) = binaries {
            fleet.binaries = binaries;
        }
        fleet.size.follow_growth(&self.layout);
        let part = match services::instance(&self.layout, &fleet.size, &fleet.binaries, service, number) {
            Ok(part) => part,
            Err(error) => return Some(Reply::Failed(format!("{error:#}"))),
        };
        if let Some((_, port)) = part.ports.iter().find(|(_, port)| crate::probe::is_taken(**port)) {
            return Some(Reply::Failed(format!("port {port} of {name} is in use by another program")));
        }
        let index = known.unwrap_or_else(|| {
            self.members.push(Member::new(part.clone()));
            self.members.len() - 1
        });
        self.members[index].try_out(part, Instant::now() + within, reply.clone());
        self.tell_prometheus();
        None
    }

    /// Removes an instance. Returns `None` if the reply is sent later, when it has ended.
    pub(super) fn remove(&mut self, name: &str, reply: &Sender<Reply>) -> Option<Reply> {
        if self.fleet.is_none() || Service::of_instance(name).is_none() {
            return Some(Reply::Failed(format!("{name} cannot be removed; it is no instance of a service")));
        }
        let index = match self.find(name) {
            Ok(index) => index,
            Err(refusal) => return Some(refusal),
        };
        let lingers = self.leave_edge(index);
        let member = &mut self.members[index];
        member.is_removed = true;
        let runs = member.runs();
        if runs {
            member.stop_for(reply.clone(), lingers);
        } else {
            member.enter(Stage::Stopped);
        }
        self.tell_prometheus();
        (!runs).then(|| Reply::Done(format!("{name} has stopped")))
    }

    /// Makes the edge send requests to an instance that is ready, and tells an edge that has just started about all.
    pub(super) fn join_edge(&mut self, index: usize) {
        let name = &self.members[index].part.name;
        let Some(fleet) = &mut self.fleet else { return };
        match Service::of_instance(name) {
            Some(instance) if fleet.in_edge.insert(instance) => {}
            // It may have read its list before the last change.
            None if *name == crate::edge::NAME => {}
            _ => return,
        }
        self.tell_edge();
    }

    /// Makes the edge send no more requests to an instance, unless it is the last one of its tier. Returns the time for
    /// which the instance has to serve those that are on their way.
    pub(super) fn leave_edge(&mut self, index: usize) -> Duration {
        let Some(instance) = Service::of_instance(&self.members[index].part.name) else { return Duration::ZERO };
        let Some(fleet) = &mut self.fleet else { return Duration::ZERO };
        let others = fleet.in_edge.iter().filter(|other| other.0 == instance.0 && **other != instance).count();
        if instance.0 == Service::Projector || others == 0 || !fleet.in_edge.remove(&instance) {
            return Duration::ZERO;
        }
        self.tell_edge();
        LINGERS
    }

    fn tell_edge(&self) {
        let Some(fleet) = &self.fleet else { return };
        let list = peers::list(&self.layout, &fleet.in_edge);
        // An edge that is down reads the stored list when it starts.
        let told = peers::store(&self.layout, &list).and_then(|()| peers::tell(&self.layout, &list));
        if let Err(error) = told {
            self.announce(&format!("{error:#}"));
        }
    }

    /// Makes Prometheus ask all instances, also those that are down, except the removed ones.
    fn tell_prometheus(&self) {
        if self.fleet.as_ref().is_none_or(|fleet| !fleet.size.observe) {
            return;
        }
        let kept = self.members.iter().filter(|member| !member.is_removed);
        let instances = kept.filter_map(|member| Service::of_instance(&member.part.name));
        if let Err(error) = observe::store_targets(&self.layout, instances) {
            self.announce(&format!("{error:#}"));
        }
    }

    /// Gives up added instances that are not ready in time.
    pub(super) fn end_trials(&mut self) {
        for index in 0..self.members.len() {
            let member = &self.members[index];
            if member.trial.is_none_or(|until| until > Instant::now()) {
                continue;
            }
            let why = match &member.stage {
                Stage::Starting { reason } => format!("is not ready in time: {reason}"),
                _ => String::from("could not be started in time"),
            };
            self.refuse(index, &why);
        }
    }

    /// Stops an added instance that has failed, and forgets it.
    pub(super) fn refuse(&mut self, index: usize, why: &str) {
        let log = self.layout.log(&self.members[index].part.name);
        let end = logs::end_of(&log);
        let member = &mut self.members[index];
        (member.trial, member.is_removed) = (None, true);
        member.reply_all(|name| Reply::Failed(format!("{name} {why}\nlast lines of {}:\n{end}", log.display())));
        member.stop();
        self.say(index, why);
        self.tell_prometheus();
    }

    /// Stops instances that have served what was on its way to them.
    pub(super) fn stop_the_left(&mut self) {
        let now = Instant::now();
        let left = |member: &&mut Member| matches!(member.stage, Stage::Leaving { until } if until <= now);
        self.members.iter_mut().filter(left).for_each(Member::stop);
    }
}
