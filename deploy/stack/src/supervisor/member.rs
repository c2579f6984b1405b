//! The lifecycle of one part of a stack, across restarts.

use std::fs;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::Event;
use super::progress::Progress;
use crate::control::Reply;
use crate::layout::Layout;
use crate::part::{OnDeath, Part, Role, Stop};
use crate::probe::Probe;
use crate::process;
use crate::status::{Process, State};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Uptime after which a process counts as healthy and its backoff is reset.
const STEADY: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_millis(25);
/// Signal and grace period for a task that is cancelled.
const STOP_TASK: Stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(5) };

pub(super) struct Member {
    pub(super) part: Part,
    pub(super) stage: Stage,
    /// Time at which the current stage began.
    pub(super) since: Instant,
    pub(super) pid: Option<u32>,
    /// Number of times the process was started.
    pub(super) life: u32,
    pub(super) last_exit: Option<String>,
    /// Time by which an added instance has to be ready; `None` for all others.
    pub(super) trial: Option<Instant>,
    /// Set when the instance is to be forgotten as soon as it has ended.
    pub(super) is_removed: bool,
    restarts: u32,
    backoff: Duration,
    /// Callers to answer when the pending start or stop is complete.
    replies: Vec<Sender<Reply>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    /// Runs but is not ready; `reason` is the latest result of its probe.
    Starting {
        reason: String,
    },
    Ready,
    /// The task succeeded.
    Done,
    BackingOff {
        until: Instant,
    },
    /// Out of the edge, and still serving what it has got; then it is stopped.
    Leaving {
        until: Instant,
    },
    Stopping {
        kill_at: Instant,
    },
    Stopped,
    Dead,
}

impl Member {
    pub(super) fn new(part: Part) -> Self {
        Self {
            part,
            stage: Stage::Waiting,
            since: Instant::now(),
            pid: None,
            life: 0,
            last_exit: None,
            trial: None,
            is_removed: false,
            restarts: 0,
            backoff: FIRST_BACKOFF,
            replies: Vec::new(),
        }
    }

    pub(super) fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.since = Instant::now();
    }

    /// Returns whether dependent parts may start: the server is ready, or the task succeeded.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Ready | Stage::Done)
    }

    pub(super) fn runs(&self) -> bool {
        self.pid.is_some()
    }

    /// Starts the process, and threads that wait for its readiness and its exit.
    pub(super) fn launch(&mut self, layout: &Layout, index: usize, events: &Sender<Event>) -> Result<()> {
        let log = layout.log(&self.part.name);
        let from = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let mut child = process::spawn(layout, &self.part.name, &self.part.launch, self.stop_by().signal)?;
        self.life += 1;
        self.pid = Some(child.id());
        self.enter(Stage::Starting { reason: String::from("just started") });

        let (life, pid) = (self.life, child.id());
        if let Role::Server { ready, .. } = &self.part.role {
            let (ready, events) = (ready.clone(), events.clone());
            thread::spawn(move || await_ready(&ready, pid, &log, from, (index, life), &events));
        }
        let events = events.clone();
        thread::spawn(move || {
            let status = child.wait().expect("only this thread waits for the child");
            // The receiver is gone once everything has stopped.
            let _ = events.send(Event::Exited { member: index, life, status });
        });
        Ok(())
    }

    /// Writes the task's stamp file, so that the next start skips it.
    pub(super) fn stamp(&self) -> Result<()> {
        match &self.part.role {
            Role::Task { stamp: Some((path, content)), .. } => {
                fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
            }
            Role::Task { stamp: None, .. } | Role::Server { .. } => Ok(()),
        }
    }

    /// Schedules a restart after an unexpected exit, or marks the member dead if it is not to be restarted.
    pub(super) fn died(&mut self) {
        let restart = match self.part.role {
            Role::Server { on_death, .. } => on_death == OnDeath::Restart,
            Role::Task { .. } => false,
        };
        if !restart {
            return self.enter(Stage::Dead);
        }
        if self.stage == Stage::Ready && self.since.elapsed() > STEADY {
            self.backoff = FIRST_BACKOFF;
        }
        self.enter(Stage::BackingOff { until: Instant::now() + self.backoff });
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        self.restarts += 1;
    }

    /// Returns a message about the action that follows an unexpected exit.
    pub(super) fn outlook(&self) -> String {
        match self.stage {
            Stage::BackingOff { until } => {
                format!("restarting in {} ms", until.saturating_duration_since(Instant::now()).as_millis())
            }
            _ => format!("restart it with `cargo stack start {}`", self.part.name),
        }
    }

    /// Starts the member at a caller's request, who is answered when it is ready.
    pub(super) fn start_again(&mut self, reply: Sender<Reply>) {
        self.backoff = FIRST_BACKOFF;
        // Without waiting for dependencies: they were ready at its first start, and a service copes with their absence.
        self.enter(Stage::BackingOff { until: Instant::now() });
        self.replies.push(reply);
    }

    /// Stops the member at a caller's request, who is answered when it has ended. `lingers` is the time for which it
    /// serves requests that are on their way to it.
    pub(super) fn stop_for(&mut self, reply: Sender<Reply>, lingers: Duration) {
        self.replies.push(reply);
        match self.stage {
            Stage::Leaving { .. } | Stage::Stopping { .. } => {}
            _ if lingers.is_zero() => self.stop(),
            _ => self.enter(Stage::Leaving { until: Instant::now() + lingers }),
        }
    }

    /// Starts the member, who has to be ready by the given time.
    pub(super) fn try_out(&mut self, part: Part, until: Instant, reply: Sender<Reply>) {
        (self.part, self.trial, self.is_removed) = (part, Some(until), false);
        (self.backoff, self.restarts, self.last_exit) = (FIRST_BACKOFF, 0, None);
        self.enter(Stage::Waiting);
        self.replies.push(reply);
    }

    /// Returns whether the member has been removed and has ended.
    pub(super) fn is_forgotten(&self) -> bool {
        self.is_removed && !self.runs()
    }

    /// Asks the process to stop. Also sends SIGCONT, because a process suspended by SIGSTOP would not handle the
    /// signal.
    pub(super) fn stop(&mut self) {
        let Some(pid) = self.pid else {
            return self.enter(Stage::Stopped);
        };
        if matches!(self.stage, Stage::Stopping { .. }) {
            return;
        }
        let stop = self.stop_by();
        process::signal_group(pid, stop.signal);
        process::signal_group(pid, Signal::CONT);
        self.enter(Stage::Stopping { kill_at: Instant::now() + stop.grace });
    }

    /// Ends the grace period now.
    pub(super) fn hurry(&mut self) {
        if let Stage::Stopping { kill_at } = &mut self.stage {
            *kill_at = (*kill_at).min(Instant::now());
        }
    }

    pub(super) fn is_late(&self) -> bool {
        self.runs() && matches!(self.stage, Stage::Stopping { kill_at } if kill_at <= Instant::now())
    }

    pub(super) fn kill(&mut self) {
        self.pid.into_iter().for_each(|pid| process::signal_group(pid, Signal::KILL));
        // The process takes a moment to exit; do not send SIGKILL again meanwhile.
        self.enter(Stage::Stopping { kill_at: Instant::now() + STEADY });
    }

    /// Returns the time of the member's next restart, stop or kill, or of the end of its trial.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::BackingOff { until } | Stage::Leaving { until } => Some(until),
            Stage::Stopping { kill_at } if self.runs() => Some(kill_at),
            Stage::Waiting | Stage::Starting { .. } => self.trial,
            _ => None,
        }
    }

    pub(super) fn reply_all(&mut self, reply: impl Fn(&str) -> Reply) {
        for to in self.replies.drain(..) {
            // The caller may have disconnected.
            let _ = to.send(reply(&self.part.name));
        }
    }

    /// Returns how far the member is, while it starts: a build's progress, or the reason a server is not ready.
    pub(super) fn progress(&self, layout: &Layout) -> Option<String> {
        let Stage::Starting { reason } = &self.stage else { return None };
        if !self.part.is_task() {
            return Some(format!("not ready yet: {reason}"));
        }
        let elapsed = self.since.elapsed();
        let built = Progress::in_log(&layout.log(&self.part.name));
        Some(built.map_or_else(|| format!("runs for {} s", elapsed.as_secs()), |built| built.describe(elapsed)))
    }

    pub(super) fn status(&self) -> Process {
        let paused = || self.pid.and_then(process::stat).is_some_and(|stat| stat.state == 'T');
        let state = match self.stage {
            Stage::Waiting => State::Waiting,
            Stage::Starting { .. } | Stage::Ready if paused() => State::Paused,
            Stage::Starting { .. } => State::Starting,
            Stage::Ready | Stage::Done => State::Ready,
            Stage::BackingOff { .. } => State::Restarting,
            Stage::Leaving { .. } | Stage::Stopping { .. } => State::Stopping,
            Stage::Stopped => State::Stopped,
            Stage::Dead => State::Dead,
        };
        Process {
            name: self.part.name.clone(),
            pid: self.pid,
            ports: self.part.ports.iter().map(|(what, port)| ((*what).to_owned(), *port)).collect(),
            state,
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
            since_secs: self.since.elapsed().as_secs(),
            resident_bytes: self.pid.and_then(process::resident_bytes),
            program: self.part.launch.program.clone(),
        }
    }

    fn stop_by(&self) -> Stop {
        match self.part.role {
            Role::Task { .. } => STOP_TASK,
            Role::Server { stop, .. } => stop,
        }
    }
}

/// Probes a process until it is ready or gone and sends the results. Another thread reports its exit.
fn await_ready(
    probe: &Probe,
    pid: u32,
    log: &std::path::Path,
    from: u64,
    (member, life): (usize, u32),
    events: &Sender<Event>,
) {
    let mut last = String::new();
    while process::stat(pid).is_some_and(|stat| stat.state != 'Z') {
        let event = match probe.check(log, from) {
            Ok(()) => Event::Ready { member, life },
            Err(reason) if reason == last => {
                thread::sleep(PROBE_INTERVAL);
                continue;
            }
            Err(reason) => {
                last.clone_from(&reason);
                Event::NotReady { member, life, reason }
            }
        };
        let done = matches!(event, Event::Ready { .. });
        if events.send(event).is_err() || done {
            return;
        }
    }
}
