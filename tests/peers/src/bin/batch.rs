//! Reservations, or orders to place, by `POST /v1/commands`, in several concurrent batches. Each connection sends its
//! next batch as soon as the last one is answered.
//!
//! `ADDRESS`, `SECONDS`, `CONNECTIONS` (default 8), `LINES` of a batch (default 500), `AGGREGATES`: `products`
//! (default) or `orders`, `PRODUCTS`, `PREFIX` of their ids, `RUN`: the prefix of this run's orders.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::StatusCode;
use hyper::body::Bytes;
use peers::connection::Connection;
use peers::seen::Seen;
use peers::setting;
use serde::Deserialize;
use tokio::task::JoinSet;

struct Lines {
    are_orders: bool,
    batch: u64,
    products: u64,
    prefix: String,
    run: String,
}

/// The part of a line's answer that matters here.
#[derive(Deserialize)]
struct LineAnswer {
    status: u16,
}

#[tokio::main]
async fn main() -> Result<()> {
    let (address, duration) = (setting::required("ADDRESS")?, setting::duration()?);
    let connections = setting::or("CONNECTIONS", 8)?;
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..connections {
        let lines = Lines {
            are_orders: setting::or("AGGREGATES", String::from("products"))? == "orders",
            batch: setting::or("LINES", 500)?,
            products: setting::or("PRODUCTS", 1)?,
            prefix: setting::required("PREFIX")?,
            run: format!("{}-{worker}", setting::required("RUN")?),
        };
        let connection = Connection::open(&address).await?;
        workers.spawn(work(connection, lines, began + duration));
    }
    let mut seen = Seen::new()?;
    while let Some(result) = workers.join_next().await {
        seen.add(&result??)?;
    }
    seen.print(began.elapsed());
    Ok(())
}

async fn work(mut connection: Connection, lines: Lines, until: Instant) -> Result<Seen> {
    let mut seen = Seen::new()?;
    let mut first = 0;
    while Instant::now() < until {
        let (body, sent) = (lines.from(first), Instant::now());
        first += lines.batch;
        let answer = connection.post("/v1/commands", "application/x-ndjson", body);
        let limit = Duration::from_secs(60);
        let (status, answers) = tokio::time::timeout(limit, answer).await.context("a batch has no answer")??;
        ensure!(status == StatusCode::OK, "a batch was answered {status}");
        seen.answered(lines.batch, lines.batch.saturating_sub(count_accepted(&answers)), sent.elapsed());
    }
    Ok(seen)
}

fn count_accepted(answers: &Bytes) -> u64 {
    let accepted = |line: &&[u8]| serde_json::from_slice(line).is_ok_and(|answer: LineAnswer| answer.status == 200);
    answers.split(|byte| *byte == b'\n').filter(accepted).count() as u64
}

impl Lines {
    fn from(&self, first: u64) -> String {
        let mut lines = String::new();
        for number in first..first + self.batch {
            let Self { prefix, run, .. } = self;
            let product = number % self.products + 1;
            if self.are_orders {
                writeln!(
                    lines,
                    r#"{{"aggregate":"orders","id":"{run}-{number:09}","command":"place","data":{{"customer":"c-{product}","lines":[{{"product":"{prefix}{product}","quantity":1,"amount_cents":1177}}]}}}}"#
                )
                .expect("writing to a String cannot fail");
                continue;
            }
            writeln!(
                lines,
                r#"{{"aggregate":"products","id":"{prefix}{product}","command":"reserve","data":{{"order":"{run}-{number:09}","quantity":1}}}}"#
            )
            .expect("writing to a String cannot fail");
        }
        lines
    }
}
