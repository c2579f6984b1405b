//! `cargo stack grow`: copies the log of the running stack to one with more partitions and switches all services to it.
//!
//! The new log has a topic, a database and a Redis prefix of its own, which the accounts of a secured stack are admitted
//! to first. Everything up to `command-api grow`'s closing of the old log can be given up. From then on there is only
//! the way forward: the command is repeated, or the next `cargo stack up` finishes the copy, since no service starts on a
//! closed log.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;

use crate::control::{self, Reply, Request};
use crate::layout::{Layout, MAX_INSTANCES};
use crate::part::Launch;
use crate::provision::Tools;
use crate::services::{GrowTools, Profile, Service};
use crate::size::Size;
use crate::supervisor::{Ended, Supervisor, Words};
use crate::{edge, kafka, plan, process, projections, provision, redis};

const FOLDER: &str = "grow-projector";
/// Maximum time that the views of the new log take to stop.
const STOPS_WITHIN: Duration = Duration::from_secs(15);
/// Time after which an owner of the closed log gets no requests, with the supervisor's time for those on their way.
const OWNER_ENDS_WITHIN: Duration = Duration::from_millis(300);
/// Beginning of the line with which `command-api grow` says that commands are refused from now on.
const CLOSING: &str = "closing ";
/// Beginning of the line with which it says that `projector continue` may begin.
const COMPLETE: &str = "the copy was complete ";
/// Beginning of the line with which `projector continue` says that queries of the new log may be served.
const COVERS: &str = "tokens of the former log are covered";
/// Text with which command-api refuses a closed log, before the topic in which it continues.
const CONTINUES_IN: &str = "the log was closed and continues in the topic ";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Grow {
    /// New number of partitions, a multiple of the present one
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    partitions: u16,
}

/// Durations that together are the time from the closing of the old log until the new one takes commands.
struct WritesStopped {
    /// The rest of the copy, until the new views have it.
    copy: Duration,
    /// The starts of the query-apis.
    readers: Duration,
    /// The starts of the command-apis.
    owners: Duration,
}

/// Names of the running instances of each service.
#[derive(Default)]
struct Instances {
    readers: Vec<String>,
    owners: Vec<String>,
    projectors: Vec<String>,
    has_edge: bool,
}

/// A growth of the running stack's log.
struct Growth<'a> {
    layout: &'a Layout,
    programs: GrowTools,
    now: Size,
    grown: Size,
}

impl Grow {
    pub(crate) fn run(&self, layout: &Layout, profile: Profile) -> Result<()> {
        let now = projections::size(layout)?;
        let grown = now.grown_to(self.partitions);
        ensure!(
            grown.partitions > now.partitions && grown.partitions.is_multiple_of(now.partitions),
            "the log has {} partitions; choose a multiple of that, such as --partitions {}",
            now.partitions,
            4 * now.partitions
        );
        let (began, tools) = (Instant::now(), provision::ensure(&layout.log("apt"))?);
        let programs = GrowTools::new(layout, &tools, [&now, &grown], profile)?;
        process::end_leftover(layout, FOLDER);
        admit(layout, &tools, [&now, &grown])?;
        run(&programs.create_database, |_| ())?;
        run(&programs.migrate, |_| ())?;
        let mut folding = process::spawn(layout, FOLDER, &programs.fold, Signal::TERM)?;
        let partitions = grown.partitions;
        let switched = Growth { layout, programs, now, grown }.copy_and_switch();
        process::signal_group(folding.id(), Signal::TERM);
        let stopped = Instant::now();
        while folding.try_wait()?.is_none() {
            if stopped.elapsed() > STOPS_WITHIN {
                process::signal_group(folding.id(), Signal::KILL);
            }
            thread::sleep(Duration::from_millis(50));
        }
        process::forget(layout, FOLDER);
        println!("{}", switched?);
        println!("the log has {partitions} partitions, after {:.1} s", began.elapsed().as_secs_f64());
        Ok(())
    }
}

impl fmt::Display for WritesStopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copy, readers, owners } = self;
        let [all, copy, readers, owners] =
            [*copy + *readers + *owners, *copy, *readers, *owners].map(|duration| duration.as_millis());
        write!(f, "writes stopped for {all} ms: {copy} for the rest of the copy and its views, ")?;
        write!(f, "{readers} for starting query-api, {owners} for starting command-api")
    }
}

impl Instances {
    fn of(layout: &Layout) -> Result<Self> {
        let mut found = Self::default();
        for name in control::status(layout)?.processes.into_iter().map(|process| process.name) {
            match Service::of_instance(&name).map(|(service, _)| service) {
                Some(Service::QueryApi) => found.readers.push(name),
                Some(Service::CommandApi) => found.owners.push(name),
                Some(Service::Projector) => found.projectors.push(name),
                None => found.has_edge |= name == edge::NAME,
            }
        }
        Ok(found)
    }
}

impl Growth<'_> {
    /// Services that read are started first, so that they know every token that is given out, then the owners, then the
    /// projectors, which react.
    fn copy_and_switch(&self) -> Result<WritesStopped> {
        let instances = Instances::of(self.layout)?;
        let (complete, is_complete) = mpsc::channel();
        let (covers, covered) = mpsc::channel();
        let writes_stopped = thread::scope(|scope| {
            let taken_over = scope.spawn(move || match is_complete.recv() {
                Ok(()) => run(&self.programs.take_over, |line| {
                    if line.starts_with(COVERS) {
                        // The receiver is gone if the copy failed after all.
                        let _ = covers.send(());
                    }
                }),
                // The copy failed.
                Err(_) => Ok(()),
            });
            let mut closed = None;
            let copied = run(&self.programs.grow, |line| {
                if line.starts_with(CLOSING) {
                    closed = Some(Instant::now());
                } else if line.starts_with(COMPLETE) {
                    complete.send(()).expect("the thread that receives it waits for nothing else");
                }
            });
            drop(complete);
            copied?;
            let closed = closed.context("the log was not closed")?;
            let switched = covered.recv().ok().map(|()| self.switch_requests(&instances, closed));
            joined(taken_over)?;
            switched.context("`projector continue` did not say that it covers tokens of the former log")?
        })?;
        at_once(&instances.projectors, |name| self.restart(name, Service::Projector))?;
        // Until then, another run does all of it again.
        self.grown.keep(self.layout)?;
        Ok(writes_stopped)
    }

    /// Starts the services that have requests again with the settings of the new log.
    fn switch_requests(&self, instances: &Instances, closed: Instant) -> Result<WritesStopped> {
        let Instances { readers, owners, has_edge, .. } = instances;
        let copied = Instant::now();
        // All but the first one serve while that starts.
        let (first, others) = readers.split_at(readers.len().min(1));
        at_once(first, |name| self.restart(name, Service::QueryApi))?;
        at_once(others, |name| self.restart(name, Service::QueryApi))?;
        let read = Instant::now();
        at_once(owners, |name| self.end_owner(name))?;
        if *has_edge {
            edge::set_partitions(self.layout, self.now.partitions, self.grown.partitions)?;
            let signal = Signal::HUP.as_raw();
            self.tell(&Request::Kill { name: edge::NAME.to_owned(), signal })?;
        }
        at_once(owners, |name| self.tell(&Request::Start { name: name.to_owned() }))?;
        Ok(WritesStopped { copy: copied - closed, readers: read - copied, owners: read.elapsed() })
    }

    /// Stops an instance of command-api. An owner of a closed log refuses commands, and would wait in vain for another one
    /// to take over its partitions, so it is killed as soon as it gets no more requests.
    fn end_owner(&self, name: &str) -> Result<()> {
        thread::scope(|scope| {
            let stopped = scope.spawn(|| self.stop(name, Service::CommandApi));
            thread::sleep(OWNER_ENDS_WITHIN);
            // It may have stopped by then.
            control::ask(self.layout, &Request::Kill { name: name.to_owned(), signal: Signal::KILL.as_raw() })?;
            joined(stopped)
        })
    }

    fn restart(&self, name: &str, service: Service) -> Result<()> {
        self.stop(name, service)?;
        self.tell(&Request::Start { name: name.to_owned() })
    }

    /// Stops an instance and gives it the settings of the new log.
    fn stop(&self, name: &str, service: Service) -> Result<()> {
        self.tell(&Request::Stop { name: name.to_owned() })?;
        self.tell(&Request::Configure { name: name.to_owned(), env: self.programs.settings(service) })
    }

    fn tell(&self, request: &Request) -> Result<()> {
        match control::ask(self.layout, request)? {
            Some(Reply::Done(done)) => println!("{done}"),
            Some(Reply::Failed(reason)) => bail!(reason),
            Some(Reply::Status(_)) | None => bail!("the stack has stopped; start it with `cargo stack up`"),
        }
        Ok(())
    }
}

/// Returns the number of partitions of the log without which a stack failed to start, because the present one is closed.
pub(crate) fn unfinished(layout: &Layout) -> Option<u16> {
    let logs = (1..=MAX_INSTANCES).map(|number| layout.log(&Service::CommandApi.instance_name(number)));
    logs.filter_map(|log| fs::read_to_string(log).ok()).find_map(|text| continues_with(&text))
}

fn continues_with(log: &str) -> Option<u16> {
    let topic = log.split_once(CONTINUES_IN)?.1.trim_start_matches(['\\', '"']);
    let digits = topic.strip_prefix("events-")?;
    digits.split(|digit: char| !digit.is_ascii_digit()).next()?.parse().ok()
}

/// Finishes the growth of the log of a stack that has stopped. Returns whether it was finished; a signal cancels it.
pub(crate) fn finish(layout: &Layout, now: &Size, partitions: u16, profile: Profile) -> Result<bool> {
    let _lock = control::lock(layout)?.context("another stack has been started meanwhile")?;
    let (tools, grown) = (provision::ensure(&layout.log("apt"))?, now.grown_to(partitions));
    let parts = plan::growth(layout, &tools, [now, &grown], profile)?;
    let mut is_complete = false;
    let supervisor = Supervisor::new(layout.clone(), parts, String::new(), Words::All)?.until_ready();
    let ended = supervisor.run(|_| is_complete = true)?;
    if is_complete {
        grown.keep(layout)?;
    }
    Ok(is_complete && ended == Ended::Asked)
}

/// Lets the accounts of a secured stack use the new log.
fn admit(layout: &Layout, tools: &Tools, logs: [&Size; 2]) -> Result<()> {
    let [now, grown] = logs;
    if !now.secure {
        return Ok(());
    }
    kafka::grant(layout, now.brokers, &[grown.topic()])?;
    redis::admit(layout, tools, &logs)
}

/// Runs a program to its end. Prints what it says, and passes each line to `heard`.
fn run(launch: &Launch, mut heard: impl FnMut(&str)) -> Result<()> {
    let env = launch.env.iter().map(|(name, value)| (name, value));
    let input = if launch.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut command = Command::new(&launch.program);
    let command = command.args(&launch.args).envs(env).stdin(input).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", launch.program.display()))?;
    if let (Some(text), Some(mut input)) = (&launch.stdin, child.stdin.take()) {
        input.write_all(text.as_bytes()).context("cannot write to the program")?;
    }
    let output = child.stdout.take().context("the program has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what the program says")?;
        println!("{line}");
        heard(&line);
    }
    let status = child.wait().context("cannot wait for the program")?;
    ensure!(status.success(), "{} {} {}", launch.program.display(), launch.args.join(" "), process::describe(status));
    Ok(())
}

/// Does the same with several instances at once.
fn at_once(names: &[String], act: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let all: Vec<_> = names.iter().map(|name| scope.spawn(|| act(name))).collect();
        all.into_iter().map(joined).fold(Ok(()), Result::and)
    })
}

fn joined(thread: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_a_closed_log_names_the_one_that_continues_it() {
        let refused = |topic: &str| continues_with(&format!("starting\nError: {CONTINUES_IN}{topic}: set …\n"));
        assert_eq!(refused(r#""events-48""#), Some(48));
        assert_eq!(refused(r#"\"events-24\""#), Some(24), "in a log of JSON");
        assert_eq!(refused(r#""orders""#), None);
        assert_eq!(continues_with("no disk"), None);
    }
}
