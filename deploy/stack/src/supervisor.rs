//! Starts the parts of a stack in the order of their needs, keeps them running, stops them in order.
//!
//! Invariant: one thread owns all state and decides; other threads only wait for something and tell it.
//! Invariant: when [`Supervisor::run`] returns, nothing that it started runs any more.

mod member;
mod requests;

use std::io::{self, Write};
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
use crate::status::{Phase, Status};
use member::{Member, Stage};

/// A process that does not get ready in this time has failed to start. Builds have as long as they take.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// A word about what it still waits for.
const REMINDER: Duration = Duration::from_secs(10);
/// Something that never comes: the loop looks at the clock by then anyhow.
const FAR: Duration = Duration::from_secs(60);

/// What another thread saw. `life`: which start of the member it is about.
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
    /// Why it is not ready, as of now.
    NotReady {
        member: usize,
        life: u32,
        reason: String,
    },
    Call(Call),
    Signal,
}

/// Why a stack ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Asked,
    /// By SIGINT or SIGTERM.
    Signalled,
}

pub(crate) struct Supervisor {
    layout: Layout,
    members: Vec<Member>,
    phase: Phase,
    url: String,
    began: Instant,
    events: Receiver<Event>,
    sender: Sender<Event>,
    /// What made the start fail.
    failure: Option<String>,
    ended: Ended,
    /// Told when nothing runs any more.
    downs: Vec<Sender<Reply>>,
    /// Signals since the stop began: a second one is impatience.
    signals: u32,
    reminded: Instant,
    words: Words,
}

/// How much it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Words {
    All,
    /// What comes after it is somebody else's: a test runner's summary is the last word.
    Start,
}

impl Supervisor {
    /// `url`: the edge's, or empty. The caller holds the state directory's lock.
    pub(crate) fn new(layout: Layout, parts: Vec<Part>, url: String, words: Words) -> Result<Self> {
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
        })
    }

    /// Until it is asked to end, or the start fails. `ready` is called once, when everything is.
    pub(crate) fn run(mut self, ready: impl FnOnce(&Status)) -> Result<Ended> {
        let mut ready = Some(ready);
        self.refuse_taken_ports();
        loop {
            self.advance();
            if self.phase == Phase::Starting && self.members.iter().all(Member::is_up) {
                self.phase = Phase::Ready;
                if let Some(ready) = ready.take() {
                    ready(&self.status());
                }
            }
            if self.phase == Phase::Stopping && self.members.iter().all(|member| !member.runs()) {
                break;
            }
            match self.events.recv_timeout(self.next_deadline()) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the supervisor lost its own channel"),
            }
        }
        self.finish()
    }

    fn finish(self) -> Result<Ended> {
        let _ = fs::remove_file(self.layout.control());
        for down in &self.downs {
            let _ = down.send(Reply::Done(String::from("everything has stopped")));
        }
        match self.failure {
            Some(failure) => bail!(failure),
            None => Ok(self.ended),
        }
    }

    /// A port that somebody else has would show as a part that dies, or worse, as one that is ready.
    fn refuse_taken_ports(&mut self) {
        let taken = self.members.iter().flat_map(|member| {
            let name = &member.part.name;
            member.part.ports.values().map(move |port| (name, *port)).filter(|(_, port)| crate::probe::is_taken(*port))
        });
        let taken: Vec<_> = taken.map(|(name, port)| format!("{port} ({name})")).collect();
        if !taken.is_empty() {
            let ports = taken.join(", ");
            self.fail(format!(
                "another program listens on ports of this stack: {ports}; --base-port moves all of them"
            ));
        }
    }

    /// Does all that the state of the members and the clock ask for.
    fn advance(&mut self) {
        match self.phase {
            Phase::Starting | Phase::Ready => self.start_what_can(),
            Phase::Stopping => self.stop_next_tier(),
            Phase::Down => {}
        }
        self.kill_the_late();
        self.remind();
    }

    fn start_what_can(&mut self) {
        for index in 0..self.members.len() {
            let member = &self.members[index];
            let due = match member.stage {
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
            self.start_failed(index, &format!("{error:#}"));
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
            // Of an earlier life.
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
            member.reply_all(|name| Reply::Done(format!("{name} is ready")));
            self.say(index, &format!("ready after {:.1} s", took.as_secs_f64()));
        }
    }

    fn exited(&mut self, index: usize, status: ExitStatus) {
        let member = &mut self.members[index];
        let pid = member.pid.take();
        process::forget(&self.layout, &member.part.name);
        // What it left in its group must not hold its ports: nginx's workers outlive a killed master.
        pid.into_iter().for_each(|pid| process::signal_group(pid, Signal::KILL));
        let how = process::describe(status);
        member.last_exit = Some(how.clone());
        match (&member.stage, self.phase) {
            (Stage::Stopping { .. }, _) | (_, Phase::Stopping) => {
                member.enter(Stage::Stopped);
                member.reply_all(|name| Reply::Done(format!("{name} has stopped ({how})")));
                self.say(index, &format!("stopped ({how})"));
            }
            (Stage::Starting { .. }, _) if member.part.is_task() => self.task_ended(index, status),
            (Stage::Starting { .. }, Phase::Starting) => self.start_failed(index, &format!("ended with {how}")),
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

    /// While the stack starts, this ends it; later only whoever asked hears of it.
    fn start_failed(&mut self, index: usize, why: &str) {
        let member = &mut self.members[index];
        let name = member.part.name.clone();
        if self.phase == Phase::Starting {
            let log = self.layout.log(&name);
            let end = logs::end_of(&log);
            self.fail(format!("{name} {why}\nthe end of {}:\n{end}", log.display()));
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

    /// All of a tier together; the next one when they are gone.
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
                self.say(index, "does not stop; killed");
            }
        }
    }

    /// Whoever waits should see for what.
    fn remind(&mut self) {
        if self.phase != Phase::Starting || self.reminded.elapsed() < REMINDER {
            return;
        }
        self.reminded = Instant::now();
        let late: Vec<_> = self.members.iter().filter_map(Member::waits_for).collect();
        late.iter().for_each(|text| self.announce(&format!("waiting for {text}")));
    }

    fn next_deadline(&self) -> Duration {
        let now = Instant::now();
        let next = self.members.iter().filter_map(Member::deadline).min();
        let wait = next.map_or(FAR, |deadline| deadline.saturating_duration_since(now));
        let limit = if self.phase == Phase::Starting { Duration::from_secs(1) } else { FAR };
        wait.min(limit).max(Duration::from_millis(1))
    }

    fn say(&self, index: usize, what: &str) {
        self.announce(&format!("{:<18} {what}", self.members[index].part.name));
    }

    /// A terminal that is gone must not end the one who has to clean up.
    fn announce(&self, what: &str) {
        if self.phase == Phase::Stopping && self.words == Words::Start {
            return;
        }
        let _ = writeln!(io::stdout(), "{:>6.1} s  {what}", self.began.elapsed().as_secs_f64());
    }
}
