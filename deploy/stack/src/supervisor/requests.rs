//! Handles control requests to a running stack.

use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::process::Signal;

use super::Supervisor;
use super::member::{Member, Stage};
use crate::control::{Reply, Request};
use crate::part::Tier;
use crate::process;
use crate::services::Service;
use crate::status::{Phase, Status};

impl Supervisor {
    pub(super) fn status(&self) -> Status {
        let shown = |member: &&Member| (!member.part.is_task() || member.runs()) && !member.is_forgotten();
        let mut members: Vec<_> = self.members.iter().filter(shown).collect();
        // Instances that were added later are shown beside the others of their service.
        members.sort_by_key(|member| (member.part.tier() == Tier::Edge, Service::of_instance(&member.part.name)));
        Status {
            state: self.phase,
            url: self.url.clone(),
            processes: members.into_iter().map(Member::status).collect(),
        }
    }

    pub(super) fn answer(&mut self, request: Request, reply: Sender<Reply>) {
        let refusal = match request {
            Request::Status => Some(Reply::Status(self.status())),
            Request::Down => {
                self.downs.push(reply.clone());
                self.begin_stop();
                None
            }
            _ if self.phase == Phase::Stopping => Some(Reply::Failed(String::from("the stack is stopping"))),
            Request::Stop { name } => self.stop_one(&name, &reply),
            Request::Start { name } => self.start_one(&name, &reply),
            Request::Configure { name, env } => Some(self.configure(&name, env)),
            Request::Kill { name, signal } => Some(self.kill_one(&name, signal)),
            Request::Add { service, number, binaries, within_secs } => {
                self.add((service, number), binaries, Duration::from_secs(within_secs), &reply)
            }
            Request::Remove { name } => self.remove(&name, &reply),
        };
        if let Some(refusal) = refusal {
            // The caller may have disconnected.
            let _ = reply.send(refusal);
        }
    }

    /// Stops a member. Returns `None` if the reply is sent later, when the process has ended.
    fn stop_one(&mut self, name: &str, reply: &Sender<Reply>) -> Option<Reply> {
        let index = match self.find(name) {
            Ok(index) => index,
            Err(refusal) => return Some(refusal),
        };
        if self.members[index].runs() {
            let lingers = self.leave_edge(index);
            self.members[index].stop_for(reply.clone(), lingers);
            return None;
        }
        self.members[index].enter(Stage::Stopped);
        Some(Reply::Done(format!("{name} is not running")))
    }

    fn start_one(&mut self, name: &str, reply: &Sender<Reply>) -> Option<Reply> {
        let index = match self.find(name) {
            Ok(index) => index,
            Err(refusal) => return Some(refusal),
        };
        let member = &mut self.members[index];
        match member.stage {
            Stage::Ready => Some(Reply::Done(format!("{name} is already running"))),
            Stage::Leaving { .. } | Stage::Stopping { .. } => {
                Some(Reply::Failed(format!("{name} is still stopping; try again")))
            }
            Stage::Waiting | Stage::Starting { .. } | Stage::Done => Some(Reply::Done(format!("{name} is starting"))),
            Stage::BackingOff { .. } | Stage::Stopped | Stage::Dead => {
                member.start_again(reply.clone());
                None
            }
        }
    }

    fn configure(&mut self, name: &str, env: Vec<(String, String)>) -> Reply {
        match self.find(name) {
            Ok(index) => {
                let known = &mut self.members[index].part.launch.env;
                known.retain(|(name, _)| env.iter().all(|(new, _)| new != name));
                known.extend(env);
                Reply::Done(format!("{name} is configured for its next start"))
            }
            Err(refusal) => refusal,
        }
    }

    fn kill_one(&mut self, name: &str, signal: i32) -> Reply {
        let Some(signal) = Signal::from_named_raw(signal) else {
            return Reply::Failed(format!("unknown signal {signal}"));
        };
        let index = match self.find(name) {
            Ok(index) => index,
            Err(refusal) => return refusal,
        };
        match self.members[index].pid {
            Some(pid) => {
                process::signal_group(pid, signal);
                Reply::Done(format!("sent signal {} to {name} (pid {pid})", signal.as_raw()))
            }
            None => Reply::Failed(format!("{name} is not running")),
        }
    }

    pub(super) fn find(&self, name: &str) -> Result<usize, Reply> {
        let is_server = |member: &Member| !member.part.is_task() && !member.is_removed;
        let servers = || self.members.iter().enumerate().filter(|(_, member)| is_server(member));
        servers().find(|(_, member)| member.part.name == name).map(|(index, _)| index).ok_or_else(|| {
            let names: Vec<_> = servers().map(|(_, member)| member.part.name.as_str()).collect();
            Reply::Failed(format!("no process named `{name}`; known processes: {}", names.join(", ")))
        })
    }
}
