//! Starts the parts of a stack in dependency order, keeps them running, and stops them in order.
//!
//! Invariant: one thread owns all state and makes all decisions; other threads only wait and send it events.
//! Invariant: when [`Supervisor::run`] returns, every process that it started has ended.

mod member;
mod progress;
mod requests;
mod fleet;
mod output;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Result, bail};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::control::{self, Call, Reply};
use crate::layout::Layout;
use crate::logs;
use crate::part::Part;
use crate::process;
use crate::size::Size;
use crate::status::{Phase, Status};
use fleet::Fleet;
use member::{Member, Stage};

/// Time after which a process that is not ready has failed to start. Tasks, such as builds, have no limit.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Upper bound of the loop's wait when no deadline is nearer.
const FAR: Duration = Duration::from_secs(60);

/// An observation by another thread. `life` is the number of the member's start to which it belongs.
enum Event {
    Exited {
        member: usize,
        life: u32,
        status: ExitStatus,
    },
    Ready {
        member: usize,
        life: u32,
    },
    /// A readiness probe failed; `reason` is its latest result.
    NotReady {
        member: usize,
        life: u32,
        reason: String,
    },
    Call(Call),
    Signal,
}

/// The reason a stack ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Asked,
    /// SIGINT, SIGTERM or SIGHUP arrived.
    Signalled,
}

pub struct Supervisor {
    layout: Layout,
    members: Vec<Member>,
    phase: Phase,
    url: String,
    began: Instant,
    events: Receiver<Event>,
    sender: Sender<Event>,
    /// Error that made the start fail.
    failure: Option<String>,
    ended: Ended,
    /// Callers of `down`, answered when every process has ended.
    downs: Vec<Sender<Reply>>,
    /// Number of signals received; the second one kills the remaining processes at once.
    signals: u32,
    reminded: Instant,
    words: Words,
    is_terminal: bool,
    /// Instances that come and go; `None` if this stack's are fixed.
    fleet: Option<Fleet>,
    /// Set if the stack stops by itself once every part is up.
    is_brief: bool,
}

/// Verbosity of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    All,
    /// Silent while stopping, so that a test runner's summary stays at the end of the output.
    Start,
}

impl Supervisor {
    /// Creates a supervisor and serves its control socket. `url` is the edge's, or empty. The caller holds the lock of
    /// the state directory.
    pub fn new(layout: Layout, parts: Vec<Part>, url: String, words: Words) -> Result<Self> {
        let (sender, events) = mpsc::channel();
        let calls = sender.clone();
        control::serve(&layout, move |call| drop(calls.send(Event::Call(call))))?;
        let now = Instant::now();
        let members = parts.into_iter().map(Member::new).collect();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let signalled = sender.clone();
        thread::spawn(move || signals.forever().all(|_| signalled.send(Event::Signal).is_ok()));
        Ok(Self {
            layout,
            members,
            phase: Phase::Starting,
            url,
            began: now,
            events,
            sender,
            failure: None,
            ended: Ended::Asked,
            downs: Vec::new(),
            signals: 0,
            reminded: now,
            words,
            is_terminal: io::stdout().is_terminal(),
            fleet: None,
            is_brief: false,
        })
    }

    /// Lets instances of services come and go while the stack runs.
    #[must_use]
    pub fn elastic(mut self, size: Size, binaries: PathBuf) -> Self {
        self.fleet = Some(Fleet::new(size, binaries, &self.members));
        self
    }

    /// Lets the stack stop by itself once every part is up: its tasks are what it is for.
    #[must_use]
    pub(crate) fn until_ready(mut self) -> Self {
        self.is_brief = true;
        self
    }

    /// Runs the stack until it is asked to stop or the start fails. Calls `ready` once, when every part is up.
    pub fn run(mut self, ready: impl FnOnce(&Status)) -> Result<Ended> {
        let mut ready = Some(ready);
        self.refuse_taken_ports();
        loop {
            self.advance();
            if self.phase == Phase::Starting && self.members.iter().all(Member::is_up) {
                if !self.is_brief {
                    self.phase = Phase::Ready;
                }
                if let Some(ready) = ready.take() {
                    ready(&self.status());
                }
                if self.is_brief {
                    self.begin_stop();
                    continue;
                }
            }
            if self.phase == Phase::Stopping && self.members.iter().all(|member| !member.runs()) {
                break;
            }
            match self.events.recv_timeout(self.next_deadline()) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the supervisor's event channel is closed"),
            }
        }
        self.finish()
    }

    fn finish(self) -> Result<Ended> {
        let _ = fs::remove_file(self.layout.control());
        for down in &self.downs {
            let _ = down.send(Reply::Done(String::from("the stack has stopped")));
        }
        match self.failure {
            Some(failure) => bail!(failure),
            None => Ok(self.ended),
        }
    }

    /// Fails the start if another program listens on one of the stack's ports. Otherwise a part would die or, worse,
    /// its probe would reach the other program and report it ready.
    fn refuse_taken_ports(&mut self) {
        let taken = self.members.iter().flat_map(|member| {
            let name = &member.part.name;
            member.part.ports.values().map(move |port| (name, *port)).filter(|(_, port)| crate::probe::is_taken(*port))
        });
        let taken: Vec<_> = taken.map(|(name, port)| format!("{port} ({name})")).collect();
        if !taken.is_empty() {
            let ports = taken.join(", ");
            self.fail(format!(
                "ports of this stack are in use by another program: {ports}; choose others with --base-port"
            ));
        }
    }

    /// Performs every action that is due: starts, stops, kills and reminders.
    fn advance(&mut self) {
        match self.phase {
            Phase::Starting | Phase::Ready => self.start_what_can(),
            Phase::Stopping => self.stop_next_tier(),
            Phase::Down => {}
        }
        self.end_trials();
        self.stop_the_left();
        self.kill_the_late();
        self.remind();
    }

    fn start_what_can(&mut self) {
        for index in 0..self.members.len() {
            let member = &self.members[index];
            let due = match member.stage {
                _ if member.is_removed => false,
                Stage::Waiting => self.has_its_needs(member),
                Stage::BackingOff { until } => until <= Instant::now(),
                _ => false,
            };
            if due {
                self.launch(index);
            }
            let member = &self.members[index];
            if let Stage::Starting { reason } = &member.stage
                && !member.part.is_task()
                && member.since.elapsed() > READY_TIMEOUT
                && self.phase == Phase::Starting
            {
                let reason = format!("is not ready after {} s: {reason}", READY_TIMEOUT.as_secs());
                self.start_failed(index, &reason);
            }
        }
    }

    fn has_its_needs(&self, member: &Member) -> bool {
        member.part.needs.iter().all(|need| {
            let needed = self.members.iter().find(|other| other.part.name == *need);
            needed.is_none_or(Member::is_up)
        })
    }

    fn launch(&mut self, index: usize) {
        let member = &mut self.members[index];
        if member.part.is_done() {
            member.enter(Stage::Done);
            return;
        }
        if let Err(error) = member.launch(&self.layout, index, &self.sender) {
            return self.start_failed(index, &format!("{error:#}"));
        }
        if let Some(about) = member.part.about() {
            self.say(index, about);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Exited { member, life, status } if self.members[member].life == life => self.exited(member, status),
            Event::Ready { member, life } if self.members[member].life == life => self.became_ready(member),
            Event::NotReady { member, life, reason: why } if self.members[member].life == life => {
                if let Stage::Starting { reason } = &mut self.members[member].stage {
                    *reason = why;
                }
            }
            // Belongs to an earlier life of the member.
            Event::Exited { .. } | Event::Ready { .. } | Event::NotReady { .. } => {}
            Event::Call((request, reply)) => self.answer(request, reply),
            Event::Signal => self.signalled(),
        }
    }

    fn became_ready(&mut self, index: usize) {
        let member = &mut self.members[index];
        if let Stage::Starting { .. } = member.stage {
            let took = member.since.elapsed();
            member.enter(Stage::Ready);
            member.trial = None;
            self.join_edge(index);
            let took = format!("ready after {:.1} s", took.as_secs_f64());
            self.members[index].reply_all(|name| Reply::Done(format!("{name} is {took}")));
            self.say(index, &took);
        }
    }

    fn exited(&mut self, index: usize, status: ExitStatus) {
        let member = &mut self.members[index];
        let pid = member.pid.take();
        process::forget(&self.layout, &member.part.name);
        // Remaining processes of its group would hold its ports: nginx's workers outlive a killed master.
        pid.into_iter().for_each(|pid| process::signal_group(pid, Signal::KILL));
        let how = process::describe(status);
        member.last_exit = Some(how.clone());
        match (&member.stage, self.phase) {
            (Stage::Leaving { .. } | Stage::Stopping { .. }, _) | (_, Phase::Stopping) => {
                member.enter(Stage::Stopped);
                member.reply_all(|name| Reply::Done(format!("{name} has stopped ({how})")));
                self.say(index, &format!("stopped ({how})"));
            }
            (Stage::Starting { .. }, _) if member.part.is_task() => self.task_ended(index, status),
            (Stage::Starting { .. }, Phase::Starting) => self.start_failed(index, &format!("ended with {how}")),
            (Stage::Starting { .. }, _) if member.trial.is_some() => self.refuse(index, &format!("ended with {how}")),
            _ => {
                member.died();
                let then = member.outlook();
                self.say(index, &format!("died ({how}); {then}"));
            }
        }
    }

    fn task_ended(&mut self, index: usize, status: ExitStatus) {
        if !status.success() {
            return self.start_failed(index, &format!("ended with {}", process::describe(status)));
        }
        let member = &mut self.members[index];
        if let Err(error) = member.stamp() {
            return self.start_failed(index, &format!("{error:#}"));
        }
        let took = member.since.elapsed();
        member.enter(Stage::Done);
        self.say(index, &format!("done after {:.1} s", took.as_secs_f64()));
    }

    /// Handles a member that failed to start. While the stack starts, this stops the whole stack; later, only the
    /// callers that requested the start are informed.
    fn start_failed(&mut self, index: usize, why: &str) {
        let member = &mut self.members[index];
        let name = member.part.name.clone();
        if self.phase == Phase::Starting {
            let log = self.layout.log(&name);
            let end = logs::end_of(&log);
            self.fail(format!("{name} {why}\nlast lines of {}:\n{end}", log.display()));
        } else {
            member.died();
            member.reply_all(|name| Reply::Failed(format!("{name} {why}")));
        }
    }

    fn fail(&mut self, why: String) {
        let first = why.lines().next().unwrap_or_default().to_owned();
        self.announce(&format!("failed: {first}; stopping everything"));
        self.failure.get_or_insert(why);
        self.phase = Phase::Stopping;
    }

    fn signalled(&mut self) {
        self.signals += 1;
        self.ended = Ended::Signalled;
        if self.signals > 1 {
            self.members.iter_mut().for_each(Member::hurry);
        }
        self.begin_stop();
    }

    fn begin_stop(&mut self) {
        if self.phase != Phase::Stopping {
            self.phase = Phase::Stopping;
            self.announce("stopping");
        }
    }

    /// Stops all members of the first tier that still runs; the next tier follows when they have ended.
    fn stop_next_tier(&mut self) {
        let tier = self.members.iter().filter(|member| member.runs()).map(|member| member.part.tier()).min();
        self.members.iter_mut().filter(|member| Some(member.part.tier()) == tier).for_each(Member::stop);
        if self.signals > 1 {
            self.members.iter_mut().for_each(Member::hurry);
        }
    }

    fn kill_the_late(&mut self) {
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            if member.is_late() {
                member.kill();
                self.say(index, "did not stop in time; killed");
            }
        }
    }

    fn next_deadline(&self) -> Duration {
        let now = Instant::now();
        let next = self.members.iter().filter_map(Member::deadline).min();
        let wait = next.map_or(FAR, |deadline| deadline.saturating_duration_since(now));
        let limit = if self.phase == Phase::Starting { Duration::from_secs(1) } else { FAR };
        wait.min(limit).max(Duration::from_millis(1))
    }
}
