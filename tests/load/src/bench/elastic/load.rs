//! Clients with fixed rates.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::task::{JoinSet, LocalSet};

use super::Phase;
use crate::sale::visitor::Visitor;
use crate::wire::Server;

/// Connections of each kind of request. More of them are due at once only if the system stands still.
const CONNECTIONS: u32 = 64;
/// Connections that find out what one instance serves.
const CLOSED: u32 = 16;
const PRODUCTS: u32 = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Kind {
    Read,
    Write,
}

/// The answer to one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) kind: Kind,
    /// Seconds from the beginning until the request was due.
    pub(super) due: f64,
    pub(super) latency: Duration,
    pub(super) is_good: bool,
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

    /// Returns the requests per second that are answered if each connection sends the next one after an answer.
    pub(super) fn peak(&self, kind: Kind, length: Duration) -> f64 {
        let edge = self.edge.clone();
        let counts = self.runtime.block_on(LocalSet::new().run_until(async {
            let mut clients = JoinSet::new();
            for number in 0..CLOSED {
                let edge = edge.clone();
                clients.spawn_local(async move {
                    let (mut client, begun) = (Visitor::new(&edge), Instant::now());
                    let mut count = 0_u32;
                    while begun.elapsed() < length {
                        count += u32::from(send(&mut client, kind, number + count * CLOSED).await);
                    }
                    count
                });
            }
            clients.join_all().await
        }));
        f64::from(counts.into_iter().sum::<u32>()) / length.as_secs_f64()
    }

    /// Sends what is due in the phases, and returns the answers.
    pub(super) fn run(&self, phases: &[Phase], begun: Instant, cancelled: impl Fn() -> bool) -> Vec<Answer> {
        self.runtime.block_on(LocalSet::new().run_until(async {
            let mut clients = JoinSet::new();
            for kind in [Kind::Read, Kind::Write] {
                for number in 0..CONNECTIONS {
                    clients.spawn_local(client(self.edge.clone(), kind, number, phases.to_vec(), begun));
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

/// Sends every so many-th request of a kind when it is due.
async fn client(edge: Server, kind: Kind, number: u32, phases: Vec<Phase>, begun: Instant) -> Vec<Answer> {
    let (mut client, mut answers, mut from) = (Visitor::new(&edge), Vec::new(), 0.0);
    for phase in &phases {
        let rate = if kind == Kind::Read { phase.reads } else { phase.writes };
        // A cast of a positive number of requests loses nothing but a fraction.
        let count = (phase.seconds * rate) as u32;
        for request in (number..count).step_by(CONNECTIONS as usize) {
            let due = from + f64::from(request) / rate;
            let at = begun + Duration::from_secs_f64(due);
            tokio::time::sleep_until(at.into()).await;
            let is_good = send(&mut client, kind, request).await;
            answers.push(Answer { kind, due, latency: at.elapsed(), is_good });
        }
        from += phase.seconds;
    }
    answers
}

/// Sends one request that no cache answers, and returns whether it succeeded.
async fn send(client: &mut Visitor, kind: Kind, number: u32) -> bool {
    let product = number % PRODUCTS;
    let status = match kind {
        Kind::Read => client.get_uncached(&format!("/v1/products/p-{product}")).await,
        Kind::Write => client.post(&format!("/v1/products/p-{product}/restock"), r#"{"quantity":1}"#).await,
    };
    status.is_ok_and(|status| status == 200)
}
