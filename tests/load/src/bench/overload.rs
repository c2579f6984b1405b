//! `cargo stack bench overload`: measures throughput and latency when more load is offered than can be served.
//!
//! First the peak rate is measured, then a client that never waits for answers offers one, two and five times that
//! rate. The client shares the cores with the servers, and refusals cost processor time, too. So each row is also
//! compared with the rate that was possible in the remaining processor time, which is computed from `/proc`; the time
//! of other programs counts for neither side.

mod report;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use stack::control::Request;
use stack::layout::Layout;
use stack::part::Launch;

use super::comparison::Turn;
use super::environment::{Environment, Instances, on_empty_stack};
use super::{Cancelled, comparison, peers, processor_time, programs, results, tool};
use report::Report;

const PRODUCTS: u32 = 2_000;
const WARM_UP_SECONDS: u64 = 2;
/// Time that a client may take beyond its configured duration.
const GRACE: Duration = Duration::from_secs(60);
/// Duration of Kafka's standstill. It is shorter than the time for which commands wait in their queues, so all further
/// commands are refused.
const STANDSTILL_SECONDS: u64 = 5;
const REFUSED: &str = "stampede_commands_refused_total";

// The group is named after the type by default, and the flattened type has the same name.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    comparison: comparison::Args,
    /// Send commands through the edge
    #[arg(long)]
    edge: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    /// Closed loop: each connection sends its next command after the answer to the last one.
    Peak,
    /// Fixed rate, as a multiple of the peak.
    Times(u32),
    /// Fixed rate while Kafka is stopped, so that nearly every command is refused.
    Refusals,
}

/// Measured processes, in the order in which a command passes through them.
const PARTS: [&str; 4] = ["client", "edge", "command-api", "kafka"];
const CLIENT: usize = 0;

/// Result of one row in one round; rates are per second.
#[derive(Debug, Clone, Copy, Serialize)]
struct Measurement {
    offered: f64,
    sent: f64,
    accepted: f64,
    refused: f64,
    failed: u64,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    /// Processor seconds used by each part.
    used: [f64; PARTS.len()],
    /// Idle seconds of all processors together.
    idle: f64,
}

/// Output of the client with a fixed rate.
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

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let wrk = programs::wrk(layout)?;
    let mut report = Report::new(args.edge, args.comparison.seconds, results::load_average()?);
    let instances = Instances { command_apis: 1, ..Instances::NONE };
    let ended = (1..=args.comparison.rounds).try_for_each(|round| {
        println!("Round {round} of {}, on a new, empty stack in {}", args.comparison.rounds, layout.state.display());
        on_empty_stack(layout, instances, peers::of_projection, cancelled, |environment| {
            let ports = layout.ports;
            let port = if args.edge { ports.edge() } else { ports.command_http(1) };
            let meter = Meter {
                environment,
                wrk: &wrk,
                address: format!("127.0.0.1:{port}"),
                seconds: args.comparison.seconds,
            };
            environment.set(instances)?;
            environment.register(&meter.address, PRODUCTS)?;
            meter.round(|row, measurement| {
                println!("          {:<18} {measurement}", row.name());
                report.add(row, measurement);
            })
        })
    });
    // Completed measurements are shown even after an error or a cancellation.
    report.show(results)?;
    ended
}

struct Meter<'a> {
    environment: &'a Environment<'a>,
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
        let script = tool::script("write/reserve.lua");
        let (duration, url) = (format!("{seconds}s"), format!("http://{}", self.address));
        let args = ["-t", "2", "-c", "256", "-d", &duration, "--timeout", "10s", "-s", &script, &url];
        let launch = Launch::new(self.wrk, args).env("RESULTS", tool::script("results.lua"));
        self.measure(launch, run, |turn: &Turn| {
            ensure!(turn.failed == 0, "{} of {} commands were not accepted", turn.failed, turn.requests);
            let Turn { requests, seconds, p50_us, p99_us, .. } = *turn;
            let rate = requests as f64 / seconds;
            let (refused, failed, used, idle) = (0.0, 0, [0.0; PARTS.len()], 0.0);
            Ok(Measurement { offered: rate, sent: rate, accepted: rate, refused, failed, p50_us, p99_us, used, idle })
        })
    }

    fn flood(&self, run: &str, rate: f64, seconds: u64) -> Result<Measurement> {
        let launch = peers::program(self.environment.layout, "flood")?
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

    /// Measures refusals while Kafka is stopped. Commands that had been admitted before they were refused count as
    /// failed.
    fn refusals(&self, rate: f64) -> Result<Measurement> {
        let kill = |signal: Signal| Request::Kill { name: String::from("kafka-1"), signal: signal.as_raw() };
        let before = self.environment.count(REFUSED, "")?;
        self.environment.tell(&kill(Signal::STOP))?;
        let measured = self.flood("none", rate, STANDSTILL_SECONDS);
        self.environment.tell(&kill(Signal::CONT))?;
        let (measured, refused) =
            (measured?, (self.environment.count(REFUSED, "")? - before) / STANDSTILL_SECONDS as f64);
        let let_in = ((measured.refused - refused) * STANDSTILL_SECONDS as f64) as u64;
        Ok(Measurement { refused, failed: measured.failed + let_in, ..measured })
    }

    /// Runs a client and measures the processor time meanwhile. `run` is the prefix of its order ids.
    fn measure<T: for<'a> Deserialize<'a>>(
        &self,
        launch: Launch,
        run: &str,
        of: impl FnOnce(&T) -> Result<Measurement>,
    ) -> Result<Measurement> {
        let launch = launch.env("PRODUCTS", PRODUCTS.to_string()).env("PREFIX", "p-").env("RUN", run);
        let limit = Duration::from_secs(self.seconds) + GRACE;
        let (used, idle) = self.used()?;
        let result = tool::load(self.environment, &launch, limit)?;
        let (used_after, idle_after) = self.used()?;
        let measurement = of(&result)?;
        let used = std::array::from_fn(|part| used_after[part] - used[part]);
        Ok(Measurement { used, idle: idle_after - idle, ..measurement })
    }

    /// Returns the processor seconds used by each part so far, and the idle ones. A client counts once it has exited.
    fn used(&self) -> Result<([f64; PARTS.len()], f64)> {
        let mut used = [0.0; PARTS.len()];
        for (part, name) in used.iter_mut().zip(PARTS) {
            *part = if name == PARTS[CLIENT] {
                processor_time::of_ended_children().context("cannot read this process's times from /proc")?
            } else {
                self.environment.cpu_seconds(name)?
            };
        }
        Ok((used, processor_time::idle().context("cannot read the idle time from /proc")?))
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
