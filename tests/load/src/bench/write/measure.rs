//! Measures one row: starts the instances, registers products, warms up, and runs the load.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Result, bail};
use serde::Serialize;

use super::load::Clients;
use super::row::{Client, Row, Server};
use crate::bench::comparison::Turn;
use crate::bench::peers;

const REGISTERING: usize = 8;
/// Time to open connections, fill caches and reach a steady batch size.
const WARM_UP_SECONDS: u64 = 1;

/// Runs measurements on one stack.
pub(super) struct Meter<'a> {
    pub(super) clients: Clients<'a>,
    pub(super) seconds: u64,
}

/// Result of one row in one round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Measurement {
    /// Successful answers per second; for a row that measures rejections, rejections per second.
    pub(super) rate: f64,
    pub(super) failed: u64,
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
    /// Processor seconds of the server, all instances together, per 1,000 requests.
    pub(super) cpu_seconds_per_1000: Option<f64>,
    /// Share of the commands that arrived at an instance which did not own them.
    pub(super) forwarded: Option<f64>,
}

/// Counters at one point in time.
#[derive(Debug, Clone, Copy)]
struct Counted {
    cpu_seconds: Option<f64>,
    rejected: f64,
    forwarded: f64,
}

impl Meter<'_> {
    pub(super) fn measure(&self, row: Row) -> Result<Measurement> {
        self.clients.environment.set(row.instances())?;
        if let Some(server) = row.client().registers_at() {
            self.register(row, server)?;
        }
        // pgbench needs no warm-up beyond connecting, which it does before its measurement begins.
        if row.client() != Client::Pgbench {
            self.clients.load(row, "warm", WARM_UP_SECONDS)?;
        }
        let before = self.counted(row)?;
        let load = self.clients.load(row, "run", self.seconds)?;
        Ok(Measurement::new(row, load, before, self.counted(row)?))
    }

    fn counted(&self, row: Row) -> Result<Counted> {
        let process = match row.client().server() {
            Some(Server::Limit) => Some(peers::LIMIT),
            Some(Server::CqrsEs) => Some(peers::SHOP),
            Some(Server::CommandApi | Server::Edge) => Some("command-api"),
            None => None,
        };
        Ok(Counted {
            cpu_seconds: process.map(|process| self.clients.environment.cpu_seconds(process)).transpose()?,
            rejected: self.clients.environment.count("stampede_commands_total", "outcome=\"rejected\"")?,
            forwarded: self.clients.environment.count("stampede_commands_forwarded_total", "")?,
        })
    }

    fn register(&self, row: Row, server: Server) -> Result<()> {
        let (prefix, next) =
            (format!("http://{}/v1/products/{}-", self.clients.address(server), row.name()), AtomicU32::new(1));
        let body = format!(r#"{{"name":"A thing","price_cents":1177,"stock":{}}}"#, row.stock());
        let work = || loop {
            let product = next.fetch_add(1, Ordering::Relaxed);
            if product > row.products() {
                return Ok(());
            }
            self.clients.environment.cancelled.check()?;
            match self.clients.environment.post(&format!("{prefix}{product}/register"), &body)? {
                200 => {}
                status => bail!("registering a product failed with {status}"),
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..REGISTERING).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })
    }
}

impl Measurement {
    fn new(row: Row, load: Turn, before: Counted, after: Counted) -> Self {
        // wrk counts any error status as a failure; the service's metrics separate rejections from real errors.
        let rejected = (after.rejected - before.rejected) as u64;
        let failed = if row.wants_rejections() { load.requests.saturating_sub(rejected) } else { load.failed };
        let of_requests = |amount: f64| amount / load.requests.max(1) as f64;
        let cpu = before.cpu_seconds.zip(after.cpu_seconds);
        let at_command_apis = matches!(row.client().server(), Some(Server::CommandApi | Server::Edge));
        Self {
            rate: load.requests.saturating_sub(failed) as f64 / load.seconds,
            failed,
            p50_us: load.p50_us,
            p99_us: load.p99_us,
            cpu_seconds_per_1000: cpu.map(|(before, after)| 1_000.0 * of_requests(after - before)),
            forwarded: at_command_apis.then(|| of_requests(after.forwarded - before.forwarded)),
        }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}/s", self.rate)?;
        let ms = |micros: u64| micros as f64 / 1_000.0;
        if let (Some(p50), Some(p99)) = (self.p50_us, self.p99_us) {
            write!(f, ", p50 {:.2} ms, p99 {:.2} ms", ms(p50), ms(p99))?;
        }
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        Ok(())
    }
}

impl Client {
    fn server(self) -> Option<Server> {
        match self {
            Self::Wrk(server) | Self::OpenLoop(server) => Some(server),
            Self::Batch { .. } => Some(Server::CommandApi),
            Self::Produce | Self::Pgbench => None,
        }
    }

    /// Returns the server at which products must be registered, or `None` if none need be.
    fn registers_at(self) -> Option<Server> {
        self.server().filter(|server| *server != Server::Limit)
    }
}
