//! Reservations, or orders to place, at a fixed rate that does not depend on the answers. Each latency counts from the
//! moment at which the request was due, so that a stall of the server counts for every request that was due meanwhile.
//!
//! `ADDRESS`, `SECONDS`, `RATE` per second (default 1,000), `CONNECTIONS` (default 64), `AGGREGATES`: `products`
//! (default) or `orders`, `PRODUCTS`, `PREFIX` of their ids, `RUN`: the prefix of this run's orders.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hyper::StatusCode;
use peers::connection::Connection;
use peers::seen::Seen;
use peers::setting;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// Time to wait for answers after the last request was due.
const PATIENCE: Duration = Duration::from_secs(10);

struct Request {
    number: u64,
    due: Instant,
}

#[tokio::main]
async fn main() -> Result<()> {
    let (address, duration) = (setting::required("ADDRESS")?, setting::duration()?);
    let rate = setting::or("RATE", 1_000_u32)?;
    let mut senders = Vec::new();
    let mut workers = JoinSet::new();
    for _ in 0..setting::or("CONNECTIONS", 64)? {
        let (sender, requests) = unbounded_channel();
        senders.push(sender);
        workers.spawn(work(Connection::open(&address).await?, requests));
    }
    let began = Instant::now();
    // A plain thread, because the runtime's timers are no finer than a millisecond.
    let pace = thread::spawn(move || pace(&senders, began, rate, duration));
    let mut seen = Seen::new()?;
    let collect = async {
        while let Some(result) = workers.join_next().await {
            seen.add(&result??)?;
        }
        anyhow::Ok(())
    };
    // Requests without an answer by then have failed.
    if let Ok(collected) = tokio::time::timeout(duration + PATIENCE, collect).await {
        collected?;
    }
    let sent = pace.join().expect("the pacing thread does not panic");
    seen.failed += sent - seen.requests;
    seen.requests = sent;
    seen.print(duration);
    Ok(())
}

/// Hands out requests when they are due and returns their number.
fn pace(workers: &[UnboundedSender<Request>], began: Instant, rate: u32, duration: Duration) -> u64 {
    let mut number = 0;
    for worker in workers.iter().cycle() {
        let after = Duration::from_secs_f64(number as f64 / f64::from(rate));
        if after >= duration {
            break;
        }
        let due = began + after;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A failed worker accepts no more requests; they are then missing among the answers and count as failed.
        let _ = worker.send(Request { number, due });
        number += 1;
    }
    number
}

async fn work(mut connection: Connection, mut requests: UnboundedReceiver<Request>) -> Result<Seen> {
    let (products, prefix, run) =
        (setting::or("PRODUCTS", 1_u64)?, setting::required("PREFIX")?, setting::required("RUN")?);
    let are_orders = setting::or("AGGREGATES", String::from("products"))? == "orders";
    let mut seen = Seen::new()?;
    while let Some(Request { number, due }) = requests.recv().await {
        let product = format!("{prefix}{}", number % products + 1);
        let (path, body) = if are_orders {
            let line = format!(r#"{{"product":"{product}","quantity":1,"amount_cents":1177}}"#);
            (format!("/v1/orders/{run}-{number:09}/place"), format!(r#"{{"customer":"{product}","lines":[{line}]}}"#))
        } else {
            (format!("/v1/products/{product}/reserve"), format!(r#"{{"order":"{run}-{number:09}","quantity":1}}"#))
        };
        let Ok((status, _)) = connection.post(&path, "application/json", body).await else { break };
        seen.answered(1, u64::from(status != StatusCode::OK), due.elapsed());
    }
    Ok(seen)
}
