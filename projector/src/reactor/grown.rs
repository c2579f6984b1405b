//! `projector continue`: takes over what only the tables of a former log know, once `command-api grow` has copied that
//! log: how far its reactors are, its deadlines, its parked reactions, and the generations of its views.
//!
//! A record is found in the new log by its aggregate and version. The reactors of the new log begin at the first record
//! whose reactions had not ended; to repeat later ones is harmless, as after a crash.
//!
//! Invariant: the former log's reactors begin nothing any more when those of the new log may: their checkpoints are
//! moved to the end of the closed log first, and their lease is waited for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chassis::postgres::PostgresSettings;
use schemas::aggregate::AggregateId;
use schemas::chain::Reader;
use schemas::record::{Epoch, Record};
use schemas::tables::{nonce_from_sql, nonce_to_sql};
use schemas::token::LogId;
use schemas::views::JOURNAL;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::positions::{begin_checkpoints, connect};
use super::sagas::Lease;
use crate::config::Config;
use crate::parked::REACTOR;
use crate::postgres::checkpoints::reader;

/// Name of the former reactors' checkpoints and parked records once they are taken.
const TAKEN: &str = "reactor-taken";
/// Maximum time for the projectors of both logs to fold what is in them.
const FOLDED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const SEGMENT: i64 = schemas::journal::SEGMENT_OFFSETS;

/// Numbers of deadlines and parked records that were taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continued {
    pub deadlines: u64,
    pub parked: usize,
}

/// Runs the subcommand.
pub async fn run(config: &Config, former: &PostgresSettings) -> anyhow::Result<()> {
    match continue_from(config, former, || println!("tokens of the former log are covered")).await? {
        Some(Continued { deadlines, parked }) => {
            println!("reactor checkpoints written; {deadlines} deadlines and {parked} parked records taken over");
        }
        None => println!("the reactors of this log have begun already; nothing was changed"),
    }
    Ok(())
}

/// Takes over from the tables of the former log to those of `config`. Returns `None` if that was done before. Calls
/// `covered` once the views of the new log know the tokens of the former one, so that queries and commands of the new log
/// may be served; its reactors have to wait for the end.
pub async fn continue_from(
    config: &Config,
    former: &PostgresSettings,
    covered: impl FnOnce(),
) -> anyhow::Result<Option<Continued>> {
    let (mut old, mut new) = (connect(former).await?, connect(&config.postgres).await?);
    for client in [&*old, &*new] {
        client.batch_execute("SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0").await?;
    }
    await_folded("the former log is not folded up to its end, or not closed", async || is_closed(&old).await).await?;
    let ends = await_folded("the copy is not complete, or not folded", async || ends(&new).await).await?;
    keep_former_logs(&old, &mut new, &ends).await?;
    covered();
    let fenced = Instant::now();
    let begun = fence(&mut old).await?;
    let starts = starts(&old, &new, &begun, &ends).await?;
    let parked = parked(&old, &new, ends.len()).await?;
    tokio::time::sleep((fenced + Lease::LENGTH).saturating_duration_since(Instant::now())).await;
    write(&old, &mut new, &starts, parked).await
}

async fn await_folded<T>(what: &'static str, look: impl AsyncFn() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(begun.elapsed() < FOLDED_WITHIN, "{what}: are the projectors of both logs running?");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Returns whether the journal of the former log has every record that counts.
async fn is_closed(old: &Client) -> anyhow::Result<Option<()>> {
    let rows = old.query(include_str!("grown/checkpoints.sql"), &[&JOURNAL]).await?;
    ensure!(!rows.is_empty(), "no projector has folded the former log");
    Ok(rows.iter().all(|row| reader(row).is_closed()).then_some(()))
}

/// Returns the offsets at which the copy of each partition ended, once the journal has them all.
async fn ends(new: &Client) -> anyhow::Result<Option<Vec<i64>>> {
    let (rows, mut ends) = (new.query(include_str!("grown/checkpoints.sql"), &[&JOURNAL]).await?, Vec::new());
    for row in &rows {
        match end_of(new, row).await? {
            Some(end) => ends.push(end),
            None => return Ok(None),
        }
    }
    Ok(Some(ends).filter(|ends| !ends.is_empty()))
}

/// Searches a partition for the claim that ended its copy, backwards, because the copy was completed a moment ago.
async fn end_of(new: &Client, row: &Row) -> anyhow::Result<Option<i64>> {
    let (partition, next): (i32, i64) = (row.get("partition"), row.get("next_offset"));
    for segment in (0..=next / SEGMENT).rev() {
        let found = new.query(include_str!("grown/claims.sql"), &[&partition, &segment]).await?;
        let is_end = |row: &&Row| {
            let record = Record::decode(row.get(1));
            matches!(record, Ok(Some(Record::Claim(claim))) if claim.ends_copy_of().is_some())
        };
        if let Some(end) = found.iter().find(is_end) {
            return Ok(Some(end.get(0)));
        }
    }
    Ok(None)
}

/// Stores from where on a view of the new log covers tokens of the former ones, and the generations that its rows must
/// not fall behind.
async fn keep_former_logs(old: &Client, new: &mut Client, ends: &[i64]) -> anyhow::Result<()> {
    let nonces = "SELECT nonce FROM log_partitions WHERE partition = 0 UNION SELECT nonce FROM former_logs";
    let nonces: Vec<i64> = old.query(nonces, &[]).await?.iter().map(|row| row.get(0)).collect();
    let made = old.query("SELECT view, max(generation) FROM checkpoints GROUP BY view", &[]).await?;
    let (views, generations): (Vec<&str>, Vec<i32>) =
        made.iter().map(|row| (row.get::<_, &str>(0), row.get::<_, i32>(1))).unzip();
    let transaction = new.transaction().await?;
    transaction.execute(include_str!("grown/keep_former_logs.sql"), &[&nonces, &ends]).await?;
    transaction.execute(include_str!("grown/raise_generations.sql"), &[&views, &generations]).await?;
    Ok(transaction.commit().await?)
}

/// Moves the former reactors' checkpoints behind the last record, so that they begin nothing any more, and returns
/// where they were. Parked records and deadlines are taken from them as well.
async fn fence(old: &mut Client) -> anyhow::Result<Vec<(u32, i64)>> {
    let transaction = old.transaction().await?;
    for statement in include_str!("grown/fence.sql").split(";\n").filter(|statement| !statement.trim().is_empty()) {
        transaction.execute(statement, &[]).await?;
    }
    let rows = transaction.query(include_str!("grown/checkpoints.sql"), &[&TAKEN]).await?;
    let begun: Vec<_> = rows.iter().map(|row| (row.get::<_, i32>(0).cast_unsigned(), row.get(1))).collect();
    if begun.iter().all(|(_, next)| *next == 0) {
        bail!("no reactor has begun on the former log; nothing is to be continued: run `projector reactor` instead");
    }
    transaction.commit().await?;
    Ok(begun)
}

/// Returns where the reactors begin in each partition of the new log.
async fn starts(old: &Client, new: &Client, begun: &[(u32, i64)], ends: &[i64]) -> anyhow::Result<Vec<Reader>> {
    let partitions = u32::try_from(ends.len()).context("too many partitions")?;
    let mut first: BTreeMap<u32, (String, i64)> = BTreeMap::new();
    for (partition, next) in begun {
        let params: [&(dyn ToSql + Sync); 2] = [&partition.cast_signed(), next];
        for row in old.query(include_str!("grown/open_commits.sql"), &params).await? {
            let (aggregate, version): (String, i64) = (row.get(1), row.get(2));
            first.entry(AggregateId::parse(&aggregate)?.partition(partitions)).or_insert((aggregate, version));
        }
    }
    let mut starts = Vec::new();
    for (partition, end) in (0..partitions).zip(ends) {
        let until = match first.get(&partition) {
            Some((aggregate, version)) => copy_of(new, partition, aggregate, *version).await?.0,
            None => *end,
        };
        starts.push(before(new, partition, until).await?);
    }
    Ok(starts)
}

/// Returns the state of a reader that has read a partition up to this offset, which must lie in the copy.
async fn before(new: &Client, partition: u32, until: i64) -> anyhow::Result<Reader> {
    let found = new.query(include_str!("grown/commit_before.sql"), &[&partition.cast_signed(), &until]).await?;
    let Some(row) = found.first() else {
        ensure!(until < SEGMENT, "partition {partition} has no commit before offset {until}");
        return Ok(Reader::START);
    };
    match Record::decode(row.get(1))? {
        Some(Record::Commit(commit)) => Ok(Reader::behind(commit.epoch, commit.seq, row.get(0))),
        other => bail!("the journal has {other:?} in the place of a commit"),
    }
}

/// Returns the offset and the bytes of a commit in the new log.
async fn copy_of(new: &Client, partition: u32, aggregate: &str, version: i64) -> anyhow::Result<(i64, Vec<u8>)> {
    let sql = r#"SELECT "offset", record, version FROM commits_of($1, $2, $3, 1)"#;
    let row = new.query_opt(sql, &[&aggregate, &partition.cast_signed(), &(version - 1)]).await?;
    let row = row.filter(|row| row.get::<_, i64>(2) == version);
    let row = row.with_context(|| format!("the new log lacks version {version} of {aggregate}"))?;
    Ok((row.get(0), row.get(1)))
}

/// Returns the name that a cause in this log has in others.
fn cause_in(log: LogId, cause: &str) -> String {
    if cause.contains('.') { cause.to_owned() } else { format!("{log}.{cause}") }
}

/// A parked record of the former log, and its place in the new one.
struct Parked {
    row: Row,
    partition: u32,
    offset: i64,
    record: Vec<u8>,
}

async fn parked(old: &Client, new: &Client, partitions: usize) -> anyhow::Result<Vec<Parked>> {
    let (partitions, mut all) = (u32::try_from(partitions).context("too many partitions")?, Vec::new());
    for row in old.query(include_str!("grown/parked.sql"), &[&TAKEN]).await? {
        let aggregate: &str = row.get("aggregate");
        let partition = AggregateId::parse(aggregate)?.partition(partitions);
        let (offset, record) = copy_of(new, partition, aggregate, row.get("version")).await?;
        all.push(Parked { row, partition, offset, record });
    }
    Ok(all)
}

async fn write(
    old: &Client,
    new: &mut Client,
    starts: &[Reader],
    parked: Vec<Parked>,
) -> anyhow::Result<Option<Continued>> {
    let partitions = u32::try_from(starts.len()).context("too many partitions")?;
    let transaction = new.transaction().await?;
    begin_checkpoints(&transaction, partitions).await?;
    let column = |of: fn(&Reader) -> i64| starts.iter().map(of).collect::<Vec<i64>>();
    let (numbers, next) = ((0..partitions.cast_signed()).collect::<Vec<_>>(), column(|at| at.next_offset));
    let claims = column(|at| at.epoch.map_or(-1, |epoch: Epoch| epoch.claim));
    let nonces = column(|at| at.epoch.map_or(0, |epoch| nonce_to_sql(epoch.nonce)));
    let (seqs, counted) = (column(|at| at.last_seq.cast_signed()), column(|at| at.last_counted));
    let params: [&(dyn ToSql + Sync); 7] = [&REACTOR, &numbers, &next, &claims, &nonces, &seqs, &counted];
    if transaction.execute(include_str!("begin_reactor.sql"), &params).await? != u64::from(partitions) {
        return Ok(None);
    }
    let mut deadlines = 0;
    let log = LogId::of_nonce(nonce_from_sql(
        old.query_one("SELECT nonce FROM log_partitions WHERE partition = 0", &[]).await?.get(0),
    ));
    for row in old.query(include_str!("grown/deadlines.sql"), &[]).await? {
        let cause = cause_in(log, row.get(3));
        let params: [&(dyn ToSql + Sync); 5] = [
            &row.get::<_, &str>(0),
            &row.get::<_, &str>(1),
            &row.get::<_, i64>(2),
            &cause,
            &row.get::<_, Option<&str>>(4),
        ];
        deadlines += transaction.execute(include_str!("grown/set_deadline.sql"), &params).await?;
    }
    for Parked { row, partition, offset, record } in &parked {
        let params: [&(dyn ToSql + Sync); 8] = [
            &REACTOR,
            &row.get::<_, &str>("aggregate"),
            offset,
            &partition.cast_signed(),
            &row.get::<_, i64>("version"),
            &row.get::<_, Option<&str>>("reason"),
            &row.get::<_, i64>("at_us"),
            record,
        ];
        transaction.execute(include_str!("grown/park.sql"), &params).await?;
    }
    transaction.commit().await?;
    Ok(Some(Continued { deadlines, parked: parked.len() }))
}
