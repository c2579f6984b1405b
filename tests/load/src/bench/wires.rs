//! `cargo stack bench wires`: measures what TLS and accounts cost on each wire, on a secured stack and on a plain one in
//! turn.
//!
//! Each row is a load that uses some of the wires. Its processor time per request in each process shows where the cost
//! is: that of Kafka, Postgres or Redis is their end of one wire alone, and that of the edge in the first row its end of
//! the wire to clients.

mod report;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use stack::layout::Layout;
use stack::part::Launch;

use super::comparison::Turn;
use super::environment::{Environment, Instances, on_empty_stack};
use super::{Cancelled, programs, results, tool};
use report::Report;

const PRODUCTS: u32 = 500;
const CONNECTIONS: &str = "64";
const WARM_UP_SECONDS: u64 = 1;
/// Time allowed for a client to end.
const GRACE: Duration = Duration::from_secs(60);
/// Measured processes, in the order in which a request passes through them.
const PROCESSES: [&str; 7] = ["edge", "command-api", "query-api", "kafka", "projector", "postgres", "redis"];

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Seconds for which each row is measured on each stack in each round
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Number of rounds, of a plain and a secured stack each
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Use the services of the profile `dev` as they were built
    #[arg(long, hide = true)]
    as_built: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Row {
    /// A page that the edge has cached.
    Cached,
    /// The same page, on a new connection for each request.
    Connect,
    Query,
    List,
    Command,
    /// Commands to one of two command-apis, which forwards half of them to the other one.
    Forward,
}

impl Row {
    const ALL: [Self; 6] = [Self::Cached, Self::Connect, Self::Query, Self::List, Self::Command, Self::Forward];

    fn name(self) -> &'static str {
        match self {
            Self::Cached => "cached page",
            Self::Connect => "new connection",
            Self::Query => "query",
            Self::List => "list",
            Self::Command => "restock",
            Self::Forward => "restock, forwarded",
        }
    }

    fn wires(self) -> &'static str {
        match self {
            Self::Cached => "client to edge",
            Self::Connect => "client to edge, with a handshake",
            Self::Query => "client to edge, edge to query-api, query-api to Redis",
            Self::List => "client to edge, edge to query-api, query-api to Postgres",
            Self::Command => "client to edge, edge to command-api, services to Kafka, projector to Postgres and Redis",
            Self::Forward => "client to command-api, command-api to command-api for half of them, and the servers",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wires {
    Plain,
    Secured,
}

/// Result of one row on one stack.
#[derive(Debug, Clone, Copy, Serialize)]
struct Measurement {
    turn: Turn,
    /// Processor time of each process per request, in microseconds.
    micros: [f64; PROCESSES.len()],
}

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let wrk = programs::wrk(layout)?;
    let mut report = Report::new(args.seconds, results::load_average()?);
    let ended = (1..=args.rounds).try_for_each(|round| {
        let mut stacks = [Wires::Plain, Wires::Secured];
        if round % 2 == 0 {
            stacks.reverse();
        }
        stacks.into_iter().try_for_each(|wires| {
            println!(
                "Round {round} of {}, {wires:?}, on a new, empty stack in {}",
                args.rounds,
                layout.state.display()
            );
            let (secure, as_built) = (wires == Wires::Secured, args.as_built);
            let instances =
                Instances { command_apis: 2, projectors: 1, query_apis: 1, secure, as_built, ..Instances::NONE };
            on_empty_stack(
                layout,
                instances,
                |_, _, _| Ok(()),
                cancelled,
                |environment| {
                    environment.set(instances)?;
                    let meter = Meter { environment, wrk: &wrk, seconds: args.seconds };
                    environment.register(&meter.address(Row::Command), PRODUCTS)?;
                    environment.await_views()?;
                    Row::ALL.into_iter().try_for_each(|row| {
                        let measurement = meter.measure(row)?;
                        report.take(row, wires, measurement);
                        Ok(())
                    })
                },
            )
        })
    });
    // Completed measurements are shown even after an error or a cancellation.
    report.show(results)?;
    ended
}

struct Meter<'a> {
    environment: &'a Environment<'a>,
    wrk: &'a Path,
    seconds: u64,
}

impl Meter<'_> {
    fn measure(&self, row: Row) -> Result<Measurement> {
        self.load(row, WARM_UP_SECONDS)?;
        self.environment.await_views()?;
        let before = self.used()?;
        let turn = self.load(row, self.seconds)?;
        self.environment.await_views()?;
        let after = self.used()?;
        let Turn { requests, failed, .. } = turn;
        ensure!(requests > 0 && failed == 0, "{}: {failed} of {requests} requests failed", row.name());
        let micros = std::array::from_fn(|process| (after[process] - before[process]) * 1e6 / requests as f64);
        Ok(Measurement { turn, micros })
    }

    /// Returns the processor seconds that each process has used so far.
    fn used(&self) -> Result<[f64; PROCESSES.len()]> {
        let used: Vec<_> =
            PROCESSES.iter().map(|process| self.environment.cpu_seconds(process)).collect::<Result<_>>()?;
        Ok(std::array::from_fn(|process| used[process]))
    }

    fn load(&self, row: Row, seconds: u64) -> Result<Turn> {
        let script =
            tool::script(if matches!(row, Row::Command | Row::Forward) { "write/restock.lua" } else { "read.lua" });
        let (duration, url) = (format!("{seconds}s"), format!("{}://{}", self.environment.scheme(), self.address(row)));
        let args = ["-t", "2", "-c", CONNECTIONS, "-d", &duration, "--timeout", "10s", "-s", &script, &url];
        // A cached page is one, and lists are a few that differ, so that query-api does not share their answers.
        let (products, first) = match row {
            Row::Cached | Row::Connect => (1, "/v1/products/p-"),
            Row::List => (PRODUCTS, "/v1/views/product?limit=10&_="),
            Row::Query | Row::Command | Row::Forward => (PRODUCTS, "/v1/products/p-"),
        };
        let headers = match row {
            Row::Cached => String::new(),
            Row::Connect => "Connection: close\r\n".to_owned(),
            // Past all caches.
            Row::Query | Row::List => "Prefer: wait=0\r\n".to_owned(),
            // A plain stack gets it as well.
            Row::Command | Row::Forward => format!("Authorization: {}\r\n", self.environment.layout.staff_bearer()?),
        };
        let launch = Launch::new(self.wrk, args)
            .env("RESULTS", tool::script("results.lua"))
            .env("PRODUCTS", products.to_string())
            .env("FIRST", first)
            .env("PREFIX", "p-")
            .env("HEADERS", headers);
        tool::load(self.environment, &launch, Duration::from_secs(seconds) + GRACE)
    }

    fn address(&self, row: Row) -> String {
        let ports = self.environment.layout.ports;
        let port = if row == Row::Forward { ports.command_http(1) } else { ports.edge() };
        format!("127.0.0.1:{port}")
    }
}
