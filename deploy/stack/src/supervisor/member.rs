//! One part of a stack through its lives.

use std::fs;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::Event;
use crate::control::Reply;
use crate::layout::Layout;
use crate::part::{OnDeath, Part, Role, Stop};
use crate::probe::Probe;
use crate::process;
use crate::status::{Process, State};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Whoever ran this long has got over what it died of.
const STEADY: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_millis(25);
/// A task that is not wanted any more.
const STOP_TASK: Stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(5) };

pub(super) struct Member {
    pub(super) part: Part,
    pub(super) stage: Stage,
    /// When it entered its stage.
    pub(super) since: Instant,
    pub(super) pid: Option<u32>,
    /// Counts its starts.
    pub(super) life: u32,
    pub(super) last_exit: Option<String>,
    restarts: u32,
    backoff: Duration,
    /// Whoever asked for the change that it is in.
    replies: Vec<Sender<Reply>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    /// `reason`: why it is not ready yet.
    Starting {
        reason: String,
    },
    Ready,
    /// A task's success.
    Done,
    BackingOff {
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
            restarts: 0,
            backoff: FIRST_BACKOFF,
            replies: Vec::new(),
        }
    }

    pub(super) fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.since = Instant::now();
    }

    /// Nothing more is to be done for it: what needs it may start.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Ready | Stage::Done)
    }

    pub(super) fn runs(&self) -> bool {
        self.pid.is_some()
    }

    /// Starts its process, and threads that wait for its readiness and its end.
    pub(super) fn launch(&mut self, layout: &Layout, index: usize, events: &Sender<Event>) -> Result<()> {
        let log = layout.log(&self.part.name);
        let from = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let mut child = process::spawn(layout, &self.part.name, &self.part.launch, self.stop_by().signal)?;
        self.life += 1;
        self.pid = Some(child.id());
        self.enter(Stage::Starting { reason: String::from("it has just been started") });

        let (life, pid) = (self.life, child.id());
        if let Role::Server { ready, .. } = &self.part.role {
            let (ready, events) = (ready.clone(), events.clone());
            thread::spawn(move || await_ready(&ready, pid, &log, from, (index, life), &events));
        }
        let events = events.clone();
        thread::spawn(move || {
            let status = child.wait().expect("a child is waited for by its one waiter");
            // Nobody listens once everything has stopped.
            let _ = events.send(Event::Exited { member: index, life, status });
        });
        Ok(())
    }

    /// Writes down that the task need not run again.
    pub(super) fn stamp(&self) -> Result<()> {
        match &self.part.role {
            Role::Task { stamp: Some((path, content)) } => {
                fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
            }
            Role::Task { stamp: None } | Role::Server { .. } => Ok(()),
        }
    }

    /// After an end that nobody asked for.
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

    /// What a death leads to.
    pub(super) fn outlook(&self) -> String {
        match self.stage {
            Stage::BackingOff { until } => {
                format!("starts again in {} ms", until.saturating_duration_since(Instant::now()).as_millis())
            }
            _ => format!("`cargo stack start {}` starts it again", self.part.name),
        }
    }

    /// By somebody's wish.
    pub(super) fn start_again(&mut self, reply: Sender<Reply>) {
        self.backoff = FIRST_BACKOFF;
        // At once: what it needs was ready when it started first, and it copes without.
        self.enter(Stage::BackingOff { until: Instant::now() });
        self.replies.push(reply);
    }

    pub(super) fn stop_for(&mut self, reply: Sender<Reply>) {
        self.replies.push(reply);
        self.stop();
    }

    /// A process that was stopped by a signal would not see the one that ends it.
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

    /// No more grace.
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
        // Death takes a moment; once is enough.
        self.enter(Stage::Stopping { kill_at: Instant::now() + STEADY });
    }

    /// When the clock alone changes something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::BackingOff { until } => Some(until),
            Stage::Stopping { kill_at } if self.runs() => Some(kill_at),
            _ => None,
        }
    }

    pub(super) fn reply_all(&mut self, reply: impl Fn(&str) -> Reply) {
        for to in self.replies.drain(..) {
            // Whoever asked may be gone.
            let _ = to.send(reply(&self.part.name));
        }
    }

    /// For whoever wonders why nothing happens.
    pub(super) fn waits_for(&self) -> Option<String> {
        match &self.stage {
            Stage::Starting { reason } if !self.part.is_task() => Some(format!("{}: {reason}", self.part.name)),
            Stage::Starting { .. } => Some(self.part.name.clone()),
            _ => None,
        }
    }

    pub(super) fn status(&self) -> Process {
        let paused = || self.pid.and_then(process::stat).is_some_and(|stat| stat.state == 'T');
        let state = match self.stage {
            Stage::Waiting => State::Waiting,
            Stage::Starting { .. } | Stage::Ready if paused() => State::Paused,
            Stage::Starting { .. } => State::Starting,
            Stage::Ready | Stage::Done => State::Ready,
            Stage::BackingOff { .. } => State::Restarting,
            Stage::Stopping { .. } => State::Stopping,
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
        }
    }

    fn stop_by(&self) -> Stop {
        match self.part.role {
            Role::Task { .. } => STOP_TASK,
            Role::Server { stop, .. } => stop,
        }
    }
}

/// Until it is ready or gone; its end is another thread's to tell.
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
