//! `cargo stack bench cost`: measures the processor time of a command in each process, from its request until it is
//! visible in the views.
//!
//! This is the most reliable figure if clients and servers share the cores, because a rate also depends on the share
//! that the client leaves to the servers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use stack::layout::Layout;
use stack::part::Launch;

use super::comparison::Turn;
use super::environment::{Environment, Instances, on_empty_stack};
use super::table::{Spread, write_table};
use super::{Cancelled, peers, programs, results, tool};

const PRODUCTS: u32 = 2_000;
/// Time for connections, batches and caches to reach their steady state.
const WARM_UP_SECONDS: u64 = 2;
/// Time allowed for a client to end.
const GRACE: Duration = Duration::from_secs(120);
/// Measured processes, in the order in which a command passes through them.
const PROCESSES: [&str; 5] = ["command-api", "kafka", "projector", "postgres", "redis"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds for which commands are sent in each row of each round
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Number of rounds; each row is measured once per round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    /// Restocks, one per request.
    Restock,
    /// Reservations, 500 per request.
    Batch,
    /// Orders, 500 placed per request, including the commands of the reactor that follow.
    Orders,
}

impl Row {
    const ALL: [Self; 3] = [Self::Restock, Self::Batch, Self::Orders];

    fn name(self) -> &'static str {
        match self {
            Self::Restock => "restock",
            Self::Batch => "reserve, batches",
            Self::Orders => "place, batches",
        }
    }
}

/// Result of one row in one round.
#[derive(Debug, Clone, Copy)]
struct Measurement {
    /// Accepted commands per second while load was offered.
    rate: f64,
    /// Processor time of each process per accepted command, in microseconds.
    micros: [f64; PROCESSES.len()],
}

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let wrk = programs::wrk(layout)?;
    let mut report =
        Report { seconds: args.seconds, load_average: results::load_average()?, measurements: BTreeMap::new() };
    let instances = Instances { command_apis: 1, projectors: 1, ..Instances::NONE };
    let ended = (1..=args.rounds).try_for_each(|round| {
        println!("Round {round} of {}, on a new, empty stack in {}", args.rounds, layout.state.display());
        on_empty_stack(layout, instances, peers::of_projection, cancelled, |environment| {
            let meter = Meter { environment, wrk: &wrk };
            environment.set(instances)?;
            environment.register(&meter.commands(), PRODUCTS)?;
            Row::ALL.into_iter().try_for_each(|row| {
                meter.measure(row, "warm", WARM_UP_SECONDS)?;
                let measurement = meter.measure(row, "run", args.seconds)?;
                println!("          {:<18} {measurement}", row.name());
                report.measurements.entry(row).or_default().push(measurement);
                Ok(())
            })
        })
    });
    // Completed measurements are shown even after an error or a cancellation.
    if !report.measurements.is_empty() {
        print!("\n{report}");
        println!("\n{}", report.save(results)?.display());
    }
    ended
}

struct Meter<'a> {
    environment: &'a Environment<'a>,
    wrk: &'a Path,
}

impl Meter<'_> {
    /// Measures one row. `run` is the prefix of its order ids.
    fn measure(&self, row: Row, run: &str, seconds: u64) -> Result<Measurement> {
        self.environment.await_views()?;
        let before = self.used()?;
        let Turn { requests, failed, seconds, .. } = self.load(row, run, seconds)?;
        ensure!(failed == 0 && requests > 0, "{failed} of {requests} commands were not accepted");
        self.environment.await_views()?;
        let after = self.used()?;
        let micros = std::array::from_fn(|process| (after[process] - before[process]) * 1e6 / requests as f64);
        Ok(Measurement { rate: requests as f64 / seconds, micros })
    }

    /// Returns the processor seconds that each process has used so far.
    fn used(&self) -> Result<[f64; PROCESSES.len()]> {
        let used: Vec<_> =
            PROCESSES.iter().map(|process| self.environment.cpu_seconds(process)).collect::<Result<_>>()?;
        Ok(std::array::from_fn(|process| used[process]))
    }

    fn load(&self, row: Row, run: &str, seconds: u64) -> Result<Turn> {
        let launch = match row {
            Row::Restock => self.wrk(seconds),
            Row::Batch => self.batches("products", seconds)?,
            Row::Orders => self.batches("orders", seconds)?,
        };
        let launch = launch.env("PRODUCTS", PRODUCTS.to_string()).env("PREFIX", "p-");
        let launch = launch.env("RUN", format!("{run}-{}", row as u8));
        tool::load(self.environment, &launch, Duration::from_secs(seconds) + GRACE)
    }

    fn wrk(&self, seconds: u64) -> Launch {
        let script = tool::script("write/restock.lua");
        let (duration, url) = (format!("{seconds}s"), format!("http://{}", self.commands()));
        let args = ["-t", "2", "-c", "256", "-d", &duration, "--timeout", "10s", "-s", &script, &url];
        Launch::new(self.wrk, args).env("RESULTS", tool::script("results.lua"))
    }

    fn batches(&self, aggregates: &str, seconds: u64) -> Result<Launch> {
        let launch = peers::program(self.environment.layout, "batch")?.env("ADDRESS", self.commands());
        Ok(launch.env("AGGREGATES", aggregates).env("SECONDS", seconds.to_string()))
    }

    fn commands(&self) -> String {
        format!("127.0.0.1:{}", self.environment.layout.ports.command_http(1))
    }
}

struct Report {
    seconds: u64,
    load_average: f64,
    measurements: BTreeMap<Row, Vec<Measurement>>,
}

impl Report {
    fn save(&self, folder: &Path) -> Result<std::path::PathBuf> {
        let rows = self.measurements.iter().map(|(row, rounds)| {
            let of = |round: &Measurement| {
                let micros: BTreeMap<_, _> = PROCESSES.into_iter().zip(round.micros).collect();
                json!({ "commands_per_second": round.rate, "micros_per_command": micros })
            };
            json!({ "row": row.name(), "rounds": rounds.iter().map(of).collect::<Vec<_>>() })
        });
        let rows: Vec<_> = rows.collect();
        results::save(
            folder,
            "cost",
            |time| json!({ "time": time, "seconds": self.seconds, "load_average": self.load_average, "rows": rows }),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.measurements.values().map(Vec::len).max().unwrap_or_default();
        writeln!(
            f,
            "µs of processor time per command: median (min to max) of {rounds} rounds of {} s\n",
            self.seconds
        )?;
        let head: Vec<_> = ["ROW", "PER SECOND"].into_iter().chain(PROCESSES).chain(["all"]).collect();
        let rows = self.measurements.iter().map(|(row, rounds)| {
            let cell = |digits, value: &dyn Fn(&Measurement) -> f64| {
                let values: Vec<_> = rounds.iter().map(value).collect();
                Spread::of(&values).map_or_else(String::new, |spread| spread.text(digits))
            };
            let mut cells = vec![row.name().to_owned(), cell(0, &|round| round.rate)];
            cells.extend((0..PROCESSES.len()).map(|process| cell(1, &|round| round.micros[process])));
            cells.push(cell(1, &|round| round.micros.iter().sum()));
            cells
        });
        write_table(f, &head, rows.collect())
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}/s", self.rate)?;
        PROCESSES.iter().zip(self.micros).try_for_each(|(process, micros)| write!(f, ", {process} {micros:.1} µs"))
    }
}
