//! Reservations at a fixed rate, some of them followed by a query with the answer's token: measures the time from the
//! acceptance of a command to the answer that shows its product's new state. Queries without the row and commands that
//! were not accepted count as failed.
//!
//! `ADDRESS` of the commands, `QUERIES`: the address for queries, `SECONDS`, `RATE` per second (default 2,000),
//! `CONNECTIONS` (default 64), `EVERY`: number of commands per query (default 20), `PRODUCTS`, `PREFIX` of their ids,
//! `RUN`: the prefix of this run's orders.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hyper::StatusCode;
use peers::connection::Connection;
use peers::seen::Seen;
use peers::setting;
use serde::Deserialize;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

const WAIT_SECS: u32 = 10;

#[derive(Deserialize)]
struct Accepted {
    token: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let (commands, queries) = (setting::required("ADDRESS")?, setting::required("QUERIES")?);
    let (duration, rate) = (setting::duration()?, setting::or("RATE", 2_000_u32)?);
    let mut senders = Vec::new();
    let mut workers = JoinSet::new();
    for first in 0..setting::or("CONNECTIONS", 64)? {
        let (sender, numbers) = unbounded_channel();
        senders.push(sender);
        let connections = (Connection::open(&commands).await?, Connection::open(&queries).await?);
        workers.spawn(work(connections, first, numbers));
    }
    let began = Instant::now();
    // A plain thread, because the runtime's timers are no finer than a millisecond.
    thread::spawn(move || {
        for (number, worker) in (0_u64..).zip(senders.iter().cycle()) {
            let after = Duration::from_secs_f64(number as f64 / f64::from(rate));
            if after >= duration {
                break;
            }
            thread::sleep((began + after).saturating_duration_since(Instant::now()));
            // A failed worker accepts no more requests.
            let _ = worker.send(number);
        }
    });
    let mut seen = Seen::new()?;
    while let Some(result) = workers.join_next().await {
        seen.add(&result??)?;
    }
    seen.print(duration);
    Ok(())
}

/// Sends commands and queries. `own` is the count of commands from which this connection starts, so that the
/// connections do not all query at once.
async fn work(
    (mut commands, mut queries): (Connection, Connection),
    mut own: u64,
    mut numbers: UnboundedReceiver<u64>,
) -> Result<Seen> {
    let (products, prefix, run) =
        (setting::or("PRODUCTS", 1_u64)?, setting::required("PREFIX")?, setting::required("RUN")?);
    let every = setting::or("EVERY", 20_u64)?;
    let mut seen = Seen::new()?;
    while let Some(number) = numbers.recv().await {
        own += 1;
        let product = format!("/v1/products/{prefix}{}", number % products + 1);
        let body = format!(r#"{{"order":"{run}-{number:09}","quantity":1}}"#);
        let (status, answer) = commands.post(&format!("{product}/reserve"), "application/json", body).await?;
        if status != StatusCode::OK {
            seen.requests += 1;
            seen.failed += 1;
            continue;
        }
        if own % every != 0 {
            continue;
        }
        let accepted = Instant::now();
        let Accepted { token } = serde_json::from_slice(&answer)?;
        let (status, _) = queries.get(&product, &token, WAIT_SECS).await?;
        seen.answered(1, u64::from(status != StatusCode::OK), accepted.elapsed());
    }
    Ok(seen)
}
