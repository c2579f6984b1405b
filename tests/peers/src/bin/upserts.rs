//! Rows like those of the product's view of orders, upserted from arrays over one connection as fast as Postgres
//! accepts them.
//!
//! `DATABASE_URL`, `SECONDS`, `ROWS` per statement (default 4,000).

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peers::seen::Seen;
use peers::setting;
use tokio_postgres::NoTls;

const UPSERT: &str = "INSERT INTO upserts (key, version, data, customer, status, ordered_at)
    SELECT key, version, data::json, customer, 'placed', ordered_at
    FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[]) AS new (key, version, data, customer, ordered_at)
    ON CONFLICT (key) DO UPDATE SET version = excluded.version, data = excluded.data, customer = excluded.customer,
        status = excluded.status, ordered_at = excluded.ordered_at";

#[tokio::main]
async fn main() -> Result<()> {
    let (duration, rows) = (setting::duration()?, setting::or("ROWS", 4_000_usize)?);
    let (client, connection) = tokio_postgres::connect(&setting::required("DATABASE_URL")?, NoTls)
        .await
        .context("cannot connect to Postgres")?;
    tokio::spawn(connection);
    client
        .batch_execute("DROP TABLE IF EXISTS upserts; CREATE TABLE upserts (LIKE order_rows INCLUDING ALL)")
        .await
        .context("cannot create the table")?;
    let upsert = client.prepare(UPSERT).await?;
    let mut seen = Seen::new()?;
    // Time spent in the statements only, without the creation of the rows.
    let mut taken = Duration::ZERO;
    let mut first = 0;
    while taken < duration {
        let numbers = first..first + rows;
        first += rows;
        let keys: Vec<_> = numbers.clone().map(|number| format!("run-0-{number:09}")).collect();
        let customers: Vec<_> = numbers.clone().map(customer).collect();
        let times: Vec<_> = numbers.clone().map(time).collect();
        let data: Vec<_> = numbers.map(row).collect();
        let sent = Instant::now();
        client.execute(&upsert, &[&keys, &vec![1_i64; rows], &data, &customers, &times]).await?;
        taken += sent.elapsed();
        seen.answered(rows as u64, 0, sent.elapsed());
    }
    seen.print(taken);
    Ok(())
}

fn customer(number: usize) -> String {
    format!("c-{}", number % 2_000 + 1)
}

/// Returns a time without its `Z`.
fn time(number: usize) -> String {
    format!("2026-11-27T08:00:00.{:03}", number % 1_000)
}

fn row(number: usize) -> String {
    let (customer, time, product) = (customer(number), time(number), number % 2_000 + 1);
    format!(
        r#"{{"customer":"{customer}","lines":[{{"product":"p-{product}","quantity":1,"amount_cents":1177}}],"status":"placed","total_cents":1177,"ordered_at":"{time}Z"}}"#
    )
}
