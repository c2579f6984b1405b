//! `cargo stack bench overload`: what is still done, and how soon, when more is asked for than can be done.
//!
//! First as much as goes, then once, twice and five times that at a fixed rate, by a client that never waits. It shares the
//! cores with those that it asks, and so do refusals. So each row also stands beside what could have been done in the
//! processor time that these left: shares are read from `/proc`, and what other programs take is nobody's.

mod report;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::comparison::Turn;
use super::scene::{Cast, Scene, on_empty_stack};
use super::{Cancelled, comparison, figures, peers, processor_time, tool};
use crate::control::Request;
use crate::layout::{Layout, root};
use crate::part::Launch;
use crate::provision;
use report::Report;

const PRODUCTS: u32 = 2_000;
const WARM_UP_SECONDS: u64 = 2;
/// What a client may take beyond the time that it was given.
const GRACE: Duration = Duration::from_secs(60);
/// While the log stands still, commands keep their places for longer than this: all others are refused.
const STANDSTILL_SECONDS: u64 = 5;
const REFUSED: &str = "stampede_commands_refused_total";

// The group has the name of the type, which the flattened one's has already.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    comparison: comparison::Args,
    /// Ask through the edge
    #[arg(long)]
    edge: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    /// As fast as answers come.
    Peak,
    /// At a rate: so many times the peak.
    Times(u32),
    /// While nothing can be written, so that nearly everything is refused.
    Refusals,
}

/// In the order of a command's way.
const PARTS: [&str; 4] = ["client", "edge", "command-api", "kafka"];
const CLIENT: usize = 0;

/// Of one row in one round; counts are a second.
#[derive(Debug, Clone, Copy, Serialize)]
struct Measurement {
    offered: f64,
    sent: f64,
    accepted: f64,
    refused: f64,
    failed: u64,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    /// Processor seconds of each part, and those that nobody used.
    used: [f64; PARTS.len()],
    idle: f64,
}

/// What the client with a fixed rate saw.
#[derive(Debug, Deserialize)]
struct Flood {
    offered: u64,
    sent: u64,
    accepted: u64,
    refused: u64,
    failed: u64,
    seconds: f64,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
}

/// `results`: the folder for the file of this run.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    layout.create()?;
    let wrk = provision::ensure_wrk(&layout.log("apt"))?;
    let mut report = Report::new(args.edge, args.comparison.seconds, figures::load_average()?);
    let cast = Cast { command_apis: 1, ..Cast::NONE };
    let ended = (1..=args.comparison.rounds).try_for_each(|round| {
        println!(
            "Round {round} of {}, on an empty stack of its own in {}",
            args.comparison.rounds,
            layout.state.display()
        );
        on_empty_stack(layout, cast, peers::of_projection, cancelled, |scene| {
            let ports = layout.ports;
            let port = if args.edge { ports.edge() } else { ports.command_http(1) };
            let meter =
                Meter { scene, wrk: &wrk, address: format!("127.0.0.1:{port}"), seconds: args.comparison.seconds };
            scene.set(cast)?;
            scene.register(&meter.address, PRODUCTS)?;
            meter.round(|row, measurement| {
                println!("          {:<18} {measurement}", row.name());
                report.add(row, measurement);
            })
        })
    });
    // What there is, is shown, whatever ended it.
    report.show(results)?;
    ended
}

struct Meter<'a> {
    scene: &'a Scene<'a>,
    wrk: &'a Path,
    address: String,
    seconds: u64,
}

impl Meter<'_> {
    fn round(&self, mut take: impl FnMut(Row, Measurement)) -> Result<()> {
        self.peak("warm", WARM_UP_SECONDS)?;
        let peak = self.peak("peak", self.seconds)?;
        take(Row::Peak, peak);
        for times in [1, 2, 5] {
            take(Row::Times(times), self.flood(&format!("x{times}"), f64::from(times) * peak.accepted, self.seconds)?);
        }
        take(Row::Refusals, self.refusals(2.0 * peak.accepted)?);
        Ok(())
    }

    fn peak(&self, run: &str, seconds: u64) -> Result<Measurement> {
        let script = root().join("deploy/stack/src/bench/write/reserve.lua").display().to_string();
        let (duration, url) = (format!("{seconds}s"), format!("http://{}", self.address));
        let args = ["-t", "2", "-c", "256", "-d", &duration, "--timeout", "10s", "-s", &script, &url];
        let launch = Launch::new(self.wrk, args).env("SEEN", tool::seen_script());
        self.measure(launch, run, |turn: &Turn| {
            ensure!(turn.failed == 0, "{} of {} commands were not accepted", turn.failed, turn.requests);
            let Turn { requests, seconds, p50_us, p99_us, .. } = *turn;
            let rate = requests as f64 / seconds;
            let (refused, failed, used, idle) = (0.0, 0, [0.0; PARTS.len()], 0.0);
            Ok(Measurement { offered: rate, sent: rate, accepted: rate, refused, failed, p50_us, p99_us, used, idle })
        })
    }

    fn flood(&self, run: &str, rate: f64, seconds: u64) -> Result<Measurement> {
        let launch = peers::program(self.scene.layout, "flood")?
            .env("ADDRESS", &self.address)
            .env("RATE", rate.to_string())
            .env("SECONDS", seconds.to_string());
        self.measure(launch, run, |flood: &Flood| {
            let Flood { failed, seconds, p50_us, p99_us, .. } = *flood;
            let [offered, sent, accepted, refused] =
                [flood.offered, flood.sent, flood.accepted, flood.refused].map(|count| count as f64 / seconds);
            let (used, idle) = ([0.0; PARTS.len()], 0.0);
            Ok(Measurement { offered, sent, accepted, refused, failed, p50_us, p99_us, used, idle })
        })
    }

    /// Of what is refused then, that which was let in before counts as failed.
    fn refusals(&self, rate: f64) -> Result<Measurement> {
        let kill = |signal: Signal| Request::Kill { name: String::from("kafka-1"), signal: signal.as_raw() };
        let before = self.scene.count(REFUSED, "")?;
        self.scene.tell(&kill(Signal::STOP))?;
        let measured = self.flood("none", rate, STANDSTILL_SECONDS);
        self.scene.tell(&kill(Signal::CONT))?;
        let (measured, refused) = (measured?, (self.scene.count(REFUSED, "")? - before) / STANDSTILL_SECONDS as f64);
        let let_in = ((measured.refused - refused) * STANDSTILL_SECONDS as f64) as u64;
        Ok(Measurement { refused, failed: measured.failed + let_in, ..measured })
    }

    /// `run`: begins the ids of this run's orders.
    fn measure<T: for<'a> Deserialize<'a>>(
        &self,
        launch: Launch,
        run: &str,
        of: impl FnOnce(&T) -> Result<Measurement>,
    ) -> Result<Measurement> {
        let launch = launch.env("PRODUCTS", PRODUCTS.to_string()).env("PREFIX", "p-").env("RUN", run);
        let limit = Duration::from_secs(self.seconds) + GRACE;
        let (used, idle) = self.used()?;
        let text = tool::run(self.scene.layout, "load", &launch, limit, self.scene.cancelled)?;
        let (used_after, idle_after) = self.used()?;
        let line =
            text.lines().rfind(|line| line.starts_with('{')).with_context(|| format!("no result in {text:?}"))?;
        let measurement = of(&serde_json::from_str(line).with_context(|| format!("no result: {line}"))?)?;
        let used = std::array::from_fn(|part| used_after[part] - used[part]);
        Ok(Measurement { used, idle: idle_after - idle, ..measurement })
    }

    /// Processor seconds of each part, and those that nobody used. The client's count when it has ended.
    fn used(&self) -> Result<([f64; PARTS.len()], f64)> {
        let mut used = [0.0; PARTS.len()];
        for (part, name) in used.iter_mut().zip(PARTS) {
            *part = if name == PARTS[CLIENT] {
                processor_time::of_ended_children().context("this process is unknown to /proc")?
            } else {
                self.scene.cpu_seconds(name)?
            };
        }
        Ok((used, processor_time::idle().context("/proc tells no idle time")?))
    }
}

impl Row {
    fn name(self) -> String {
        match self {
            Self::Peak => String::from("peak"),
            Self::Times(times) => format!("{times} x peak"),
            Self::Refusals => String::from("refusals"),
        }
    }
}
