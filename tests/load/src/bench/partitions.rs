//! `cargo stack bench partitions`: compares logs with different numbers of partitions by the rate and latency of commands,
//! and by the memory of each service and its time from start to ready.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use stack::control::{self, Request};
use stack::layout::Layout;
use stack::part::Launch;

use super::comparison::Turn;
use super::environment::{Environment, Instances, on_empty_stack_of};
use super::table::{Spread, write_table};
use super::{Cancelled, programs, results, tool};

const PRODUCTS: u32 = 2_000;
const WARM_UP_SECONDS: u64 = 2;
/// Time allowed for the client to end.
const GRACE: Duration = Duration::from_secs(60);
const SERVICES: [&str; 3] = ["command-api-1", "projector-1", "query-api-1"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Numbers of partitions to compare
    #[arg(value_name = "PARTITIONS", default_values_t = [12_u16, 48], value_parser = clap::value_parser!(u16).range(1..=1024))]
    partitions: Vec<u16>,
    /// Seconds for which commands are sent in each round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Number of rounds; each number of partitions is measured once per round, on a stack of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// Result of one number of partitions in one round.
#[derive(Debug, Clone, Copy)]
struct Measurement {
    /// Accepted restocks per second, of 2,000 products by 256 connections, with all views folded meanwhile.
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Memory of each service after the load.
    mebibytes: [f64; SERVICES.len()],
    /// Time from the start of each service to its readiness, with the data of the load.
    ready_secs: [f64; SERVICES.len()],
}

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let wrk = programs::wrk(layout)?;
    let mut report =
        Report { seconds: args.seconds, load_average: results::load_average()?, measurements: BTreeMap::new() };
    let instances = Instances { command_apis: 1, projectors: 1, query_apis: 1, ..Instances::NONE };
    let mut turns =
        (1..=args.rounds).flat_map(|round| args.partitions.iter().map(move |partitions| (round, *partitions)));
    let ended = turns.try_for_each(|(round, partitions)| {
        println!("Round {round} of {}, {partitions} partitions, in {}", args.rounds, layout.state.display());
        let play = |environment: &Environment<'_>| measure(environment, &wrk, instances, args.seconds);
        let measurement = on_empty_stack_of(partitions, layout, instances, |_, _, _| Ok(()), cancelled, play)?;
        println!("          {measurement}");
        report.measurements.entry(partitions).or_default().push(measurement);
        Ok(())
    });
    // Completed measurements are shown even after an error or a cancellation.
    if !report.measurements.is_empty() {
        print!("\n{report}");
        println!("\n{}", report.save(results)?.display());
    }
    ended
}

fn measure(environment: &Environment<'_>, wrk: &Path, instances: Instances, seconds: u64) -> Result<Measurement> {
    environment.set(instances)?;
    let address = format!("127.0.0.1:{}", environment.layout.ports.command_http(1));
    environment.register(&address, PRODUCTS)?;
    let load = |seconds: u64| {
        let (duration, url, script) =
            (format!("{seconds}s"), format!("http://{address}"), tool::script("write/restock.lua"));
        let args = ["-t", "2", "-c", "256", "-d", &duration, "--timeout", "10s", "-s", &script, &url];
        let launch = Launch::new(wrk, args).env("RESULTS", tool::script("results.lua"));
        let launch = launch.env("PRODUCTS", PRODUCTS.to_string()).env("PREFIX", "p-").env("RUN", "run");
        tool::load::<Turn>(environment, &launch, Duration::from_secs(seconds) + GRACE)
    };
    load(WARM_UP_SECONDS)?;
    let turn = load(seconds)?;
    ensure!(turn.failed == 0 && turn.requests > 0, "{} of {} commands were not accepted", turn.failed, turn.requests);
    let ms = |micros: Option<u64>| micros.unwrap_or_default() as f64 / 1e3;
    Ok(Measurement {
        rate: turn.requests as f64 / turn.seconds,
        p50_ms: ms(turn.p50_us),
        p99_ms: ms(turn.p99_us),
        mebibytes: memory(environment.layout)?,
        ready_secs: start_to_ready(environment)?,
    })
}

fn memory(layout: &Layout) -> Result<[f64; SERVICES.len()]> {
    let processes = control::status(layout)?.processes;
    let of = |name: &str| {
        let process = processes.iter().find(|process| process.name == name);
        let bytes = process.and_then(|process| process.resident_bytes);
        bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)).with_context(|| format!("{name} does not run"))
    };
    let found: Vec<_> = SERVICES.into_iter().map(of).collect::<Result<_>>()?;
    Ok(std::array::from_fn(|service| found[service]))
}

fn start_to_ready(environment: &Environment<'_>) -> Result<[f64; SERVICES.len()]> {
    let mut secs = [0.0; SERVICES.len()];
    for (name, secs) in SERVICES.into_iter().zip(&mut secs) {
        environment.tell(&Request::Stop { name: name.to_owned() })?;
        let started = Instant::now();
        environment.tell(&Request::Start { name: name.to_owned() })?;
        *secs = started.elapsed().as_secs_f64();
    }
    Ok(secs)
}

struct Report {
    seconds: u64,
    load_average: f64,
    measurements: BTreeMap<u16, Vec<Measurement>>,
}

impl Report {
    fn save(&self, folder: &Path) -> Result<std::path::PathBuf> {
        let by_service = |values: [f64; SERVICES.len()]| SERVICES.into_iter().zip(values).collect::<BTreeMap<_, _>>();
        let of = |round: &Measurement| {
            json!({
                "commands_per_second": round.rate, "p50_ms": round.p50_ms, "p99_ms": round.p99_ms,
                "mebibytes": by_service(round.mebibytes), "ready_seconds": by_service(round.ready_secs),
            })
        };
        let rows = self.measurements.iter().map(|(partitions, rounds)| {
            json!({ "partitions": partitions, "rounds": rounds.iter().map(of).collect::<Vec<_>>() })
        });
        let rows: Vec<_> = rows.collect();
        results::save(
            folder,
            "partitions",
            |time| json!({ "time": time, "seconds": self.seconds, "load_average": self.load_average, "rows": rows }),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.measurements.values().map(Vec::len).max().unwrap_or_default();
        writeln!(
            f,
            "median (min to max) of {rounds} rounds of {} s; load average {}\n",
            self.seconds, self.load_average
        )?;
        let kinds = SERVICES.map(|service| service.trim_end_matches("-1"));
        let mut head = ["PARTITIONS", "PER SECOND", "P50 MS", "P99 MS"].map(str::to_owned).to_vec();
        head.extend(kinds.map(|kind| format!("{kind} MIB")));
        head.extend(kinds.map(|kind| format!("{kind} READY S")));
        let rows = self.measurements.iter().map(|(partitions, rounds)| {
            let cell = |digits, value: &dyn Fn(&Measurement) -> f64| {
                let values: Vec<_> = rounds.iter().map(value).collect();
                Spread::of(&values).map_or_else(String::new, |spread| spread.text(digits))
            };
            let mut cells = vec![partitions.to_string(), cell(0, &|round| round.rate)];
            cells.extend([cell(1, &|round| round.p50_ms), cell(1, &|round| round.p99_ms)]);
            cells.extend((0..SERVICES.len()).map(|service| cell(0, &|round| round.mebibytes[service])));
            cells.extend((0..SERVICES.len()).map(|service| cell(2, &|round| round.ready_secs[service])));
            cells
        });
        write_table(f, &head.iter().map(String::as_str).collect::<Vec<_>>(), rows.collect())
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}/s, p50 {:.1} ms, p99 {:.1} ms", self.rate, self.p50_ms, self.p99_ms)?;
        let mut of = SERVICES.iter().zip(self.mebibytes).zip(self.ready_secs);
        of.try_for_each(|((name, mib), secs)| write!(f, ", {name} {mib:.0} MiB, ready after {secs:.2} s"))
    }
}
