//! Clients with fixed rates, and clients that send as fast as they are answered.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use stack::services::Service;
use tokio::runtime::Runtime;
use tokio::task::{JoinSet, LocalSet};

use super::schedule::{Phase, Schedule};
use crate::sale::visitor::Visitor;
use crate::wire::Server;

/// Connections of each kind of request. A request that is due takes any free one. More are due at once only if the
/// system stands still.
const CONNECTIONS: u32 = 200;
const PRODUCTS: u32 = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Read,
    Write,
}

impl Kind {
    /// Returns the service that answers it.
    pub(super) fn service(self) -> Service {
        match self {
            Self::Read => Service::QueryApi,
            Self::Write => Service::CommandApi,
        }
    }
}

/// The answer to one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) kind: Kind,
    /// Seconds from the beginning until the request was due.
    pub(super) due: f64,
    /// Time from when it was due until it was answered.
    pub(super) latency: Duration,
    /// Part of the latency by which a free connection sent it too late.
    pub(super) late: Duration,
    /// Status of the answer; 0 if there was none.
    pub(super) status: u16,
}

impl Answer {
    pub(super) fn is_good(&self) -> bool {
        self.status == 200
    }
}

pub(super) struct Load {
    runtime: Runtime,
    edge: Server,
}

impl Load {
    pub(super) fn of(edge: Server) -> Result<Self> {
        Ok(Self { runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?, edge })
    }

    pub(super) fn register(&self) -> Result<()> {
        self.runtime.block_on(async {
            let mut client = Visitor::new(&self.edge);
            for product in 0..PRODUCTS {
                let body = r#"{"name":"A thing","price_cents":1177,"stock":1}"#;
                let status = client.post(&format!("/v1/products/p-{product}/register"), body).await?;
                ensure!(status == 200, "registering a product failed with {status}");
            }
            Ok(())
        })
    }

    /// Returns the latencies of the good answers if each of so many connections sends its next request after an answer.
    pub(super) fn closed(&self, kind: Kind, connections: u32, length: Duration) -> Vec<Duration> {
        let all = self.runtime.block_on(LocalSet::new().run_until(async {
            let mut clients = JoinSet::new();
            for number in 0..connections {
                let edge = self.edge.clone();
                clients.spawn_local(async move {
                    let (mut client, begun, mut latencies) = (Visitor::new(&edge), Instant::now(), Vec::new());
                    for request in (number..).step_by(connections as usize) {
                        let sent = Instant::now();
                        if sent - begun >= length {
                            break;
                        }
                        if send(&mut client, kind, request).await == 200 {
                            latencies.push(sent.elapsed());
                        }
                    }
                    latencies
                });
            }
            clients.join_all().await
        }));
        all.concat()
    }

    /// Sends what is due in the phases, and returns the answers.
    pub(super) fn run(&self, phases: &[Phase], begun: Instant, cancelled: impl Fn() -> bool) -> Vec<Answer> {
        self.runtime.block_on(LocalSet::new().run_until(async {
            let mut clients = JoinSet::new();
            for kind in [Kind::Read, Kind::Write] {
                let (schedule, next) = (Rc::new(Schedule::new(phases, kind)), Rc::new(Cell::new(0)));
                for _ in 0..CONNECTIONS {
                    clients.spawn_local(client(self.edge.clone(), kind, schedule.clone(), next.clone(), begun));
                }
            }
            let mut all = Vec::new();
            loop {
                match tokio::time::timeout(Duration::from_millis(200), clients.join_next()).await {
                    Ok(Some(answers)) => all.extend(answers.unwrap_or_default()),
                    Ok(None) => return all,
                    Err(_) if cancelled() => clients.abort_all(),
                    Err(_) => {}
                }
            }
        }))
    }
}

/// Takes the next request that no other client has taken, and sends it when it is due, until there is none.
async fn client(edge: Server, kind: Kind, schedule: Rc<Schedule>, next: Rc<Cell<u32>>, begun: Instant) -> Vec<Answer> {
    let (mut client, mut answers) = (Visitor::new(&edge), Vec::new());
    loop {
        let request = next.replace(next.get() + 1);
        let Some(due) = schedule.due(request) else { return answers };
        let at = begun + Duration::from_secs_f64(due);
        let is_early = at > Instant::now();
        tokio::time::sleep_until(at.into()).await;
        let late = if is_early { at.elapsed() } else { Duration::ZERO };
        let status = send(&mut client, kind, request).await;
        answers.push(Answer { kind, due, latency: at.elapsed(), late, status });
    }
}

/// Sends one request that no cache answers, and returns the status of the answer, or 0 if there is none.
async fn send(client: &mut Visitor, kind: Kind, number: u32) -> u16 {
    let product = number % PRODUCTS;
    let status = match kind {
        Kind::Read => client.get_uncached(&format!("/v1/products/p-{product}")).await,
        Kind::Write => client.post(&format!("/v1/products/p-{product}/restock"), r#"{"quantity":1}"#).await,
    };
    status.unwrap_or_default()
}
