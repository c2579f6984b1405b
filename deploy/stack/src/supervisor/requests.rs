//! Handles control requests to a running stack.

use std::sync::mpsc::Sender;

use rustix::process::Signal;

use super::Supervisor;
use super::member::Stage;
use crate::control::{Reply, Request};
use crate::process;
use crate::status::{Phase, Status};

impl Supervisor {
    pub(super) fn status(&self) -> Status {
        let processes = self.members.iter().filter(|member| !member.part.is_task() || member.runs());
        Status {
            state: self.phase,
            url: self.url.clone(),
            processes: processes.map(|member| member.status()).collect(),
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
            Request::Stop { .. } | Request::Start { .. } | Request::Kill { .. } if self.phase == Phase::Stopping => {
                Some(Reply::Failed(String::from("the stack is stopping")))
            }
            Request::Stop { name } => self.stop_one(&name, &reply),
            Request::Start { name } => self.start_one(&name, &reply),
            Request::Kill { name, signal } => Some(self.kill_one(&name, signal)),
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
        let member = &mut self.members[index];
        if member.runs() {
            member.stop_for(reply.clone());
            return None;
        }
        member.enter(Stage::Stopped);
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
            Stage::Stopping { .. } => Some(Reply::Failed(format!("{name} is still stopping; try again"))),
            Stage::Waiting | Stage::Starting { .. } | Stage::Done => Some(Reply::Done(format!("{name} is starting"))),
            Stage::BackingOff { .. } | Stage::Stopped | Stage::Dead => {
                member.start_again(reply.clone());
                None
            }
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

    fn find(&self, name: &str) -> Result<usize, Reply> {
        let servers = || self.members.iter().enumerate().filter(|(_, member)| !member.part.is_task());
        servers().find(|(_, member)| member.part.name == name).map(|(index, _)| index).ok_or_else(|| {
            let names: Vec<_> = servers().map(|(_, member)| member.part.name.as_str()).collect();
            Reply::Failed(format!("no process named `{name}`; known processes: {}", names.join(", ")))
        })
    }
}
