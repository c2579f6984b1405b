//! Makes aggregates, and asks the services.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde::Deserialize;
use stack::layout::Layout;
use ureq::Agent;

use super::super::Cancelled;
use super::super::environment::sum_of;
use super::{FEW, Service};

/// Number of connections that register products at the same time.
const CONNECTIONS: usize = 8;
/// Number of commands in a batch.
const LINES: u64 = 1_000;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time allowed for a batch, also if parts of it have to be sent again, and for the views to catch up.
const GRACE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);
const MAX_BODY: u64 = 64 << 20;

pub(super) struct Shop {
    agent: Agent,
    /// URLs by part of the system.
    commands: String,
    queries: String,
    edge: String,
    projector: String,
}

/// The part of a line's answer that matters here.
#[derive(Deserialize)]
struct LineAnswer {
    status: u16,
}

impl Shop {
    pub(super) fn new(layout: &Layout) -> Self {
        // No global timeout, for which ureq would resolve the name in a new thread for each request.
        let config = Agent::config_builder().http_status_as_error(false).max_idle_connections_per_host(CONNECTIONS);
        let config = config.timeout_recv_response(Some(TIMEOUT)).timeout_recv_body(Some(TIMEOUT));
        let local = |port| format!("http://127.0.0.1:{port}");
        Self {
            agent: config.build().new_agent(),
            commands: local(layout.ports.command_http(1)),
            queries: local(layout.ports.query_http(1)),
            edge: local(layout.ports.edge()),
            projector: local(layout.ports.projector_admin(1)),
        }
    }

    /// Registers products with these numbers.
    pub(super) fn register(&self, numbers: Range<u64>, cancelled: &Cancelled) -> Result<()> {
        let next = AtomicU64::new(numbers.start);
        let work = || -> Result<()> {
            loop {
                let from = next.fetch_add(LINES, Ordering::Relaxed);
                if from >= numbers.end {
                    return Ok(());
                }
                self.register_batch(from..(from + LINES).min(numbers.end), cancelled)?;
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
        })
    }

    /// Sends a batch until all of its commands have been accepted; their keys make that harmless.
    fn register_batch(&self, numbers: Range<u64>, cancelled: &Cancelled) -> Result<()> {
        let mut lines = String::new();
        for number in numbers {
            let data = r#"{"name":"A thing","price_cents":1177,"stock":1000000}"#;
            writeln!(
                lines,
                r#"{{"aggregate":"products","id":"p-{number}","command":"register","data":{data},"key":"r-{number}"}}"#
            )?;
        }
        let begun = Instant::now();
        while !self.is_accepted(&lines) {
            cancelled.check()?;
            ensure!(begun.elapsed() < GRACE, "a batch was not accepted within {} s", GRACE.as_secs());
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Returns the number of commands that the projector has folded since its start.
    pub(super) fn folded(&self) -> u64 {
        let metrics = self.get(&format!("{}/metrics", self.projector)).unwrap_or_default();
        sum_of(&metrics, "stampede_commits_folded_total", "") as u64
    }

    /// Waits until the projector has folded this number of commands since its start.
    pub(super) fn await_folded(&self, commands: u64, cancelled: &Cancelled) -> Result<()> {
        let begun = Instant::now();
        while self.folded() < commands {
            cancelled.check()?;
            ensure!(begun.elapsed() < GRACE, "the views have not caught up within {} s", GRACE.as_secs());
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Returns whether a service does its work: commands of all partitions, the queries of a row.
    pub(super) fn is_answered_by(&self, service: Service) -> bool {
        let row = |url: &str| self.get(&format!("{url}/v1/products/p-1")).is_some();
        match service {
            Service::CommandApi => {
                let line = |number| {
                    let data = r#"{"quantity":1}"#;
                    format!(r#"{{"aggregate":"products","id":"p-{number}","command":"restock","data":{data}}}"#) + "\n"
                };
                self.is_accepted(&(0..FEW).map(line).collect::<String>())
            }
            Service::QueryApi => row(&self.queries),
            Service::Edge => row(&self.edge),
            // Nobody asks it; it is ready when it folds.
            Service::Projector => true,
        }
    }

    /// Sends a batch, and returns whether all of its commands were accepted.
    fn is_accepted(&self, lines: &str) -> bool {
        let request = self.agent.post(format!("{}/v1/commands", self.commands));
        let Ok(mut answer) = request.header("Content-Type", "application/x-ndjson").send(lines) else { return false };
        let Ok(text) = answer.body_mut().with_config().limit(MAX_BODY).read_to_string() else { return false };
        let accepted = |line: &str| serde_json::from_str(line).is_ok_and(|answer: LineAnswer| answer.status == 200);
        text.lines().filter(|line| accepted(line)).count() == lines.lines().count()
    }

    /// Returns the body of a successful answer.
    fn get(&self, url: &str) -> Option<String> {
        let mut answer = self.agent.get(url).call().ok().filter(|answer| answer.status().as_u16() == 200)?;
        answer.body_mut().with_config().limit(MAX_BODY).read_to_string().ok()
    }
}
