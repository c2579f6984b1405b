//! `projector recover`: fills empty tables from the log alone.
//!
//! It folds the log as a projector does, finds what the reactors have left open, and lets them begin there. To find it,
//! it tries each reaction on the states at the end of the log: one that would change nothing has had its effect, and is
//! not sent again. It can be repeated until it has succeeded.
//!
//! Lost for good is what only an operator told Postgres: settings other than the defaults, and which parked records were
//! discarded, which are tried again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chassis::exit::Misuse;
use chassis::listeners::ListenerSettings;
use chassis::readiness::Readiness;
use chassis::shutdown::Shutdown;
use schemas::feeds::FeedId;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::audit::ends;
use crate::config::{Config, Feeds};
use crate::parked::REACTOR;
use crate::reactor::begin::Past;
use crate::{App, snapshots};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time within which partitions have leaders after a start of the brokers.
const LED_WITHIN: Duration = Duration::from_secs(10);
/// Number of events below which the start takes most of the time.
const WORTH_A_RATE: u64 = 10_000;
/// Interval between lines about the progress.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Outcome of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    pub records: u64,
    pub events: u64,
    /// Records whose reactions were open.
    pub open: usize,
    pub deadlines: usize,
    /// Records that views could not take.
    pub parked: u64,
}

/// Runs the subcommand.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let began = Instant::now();
    let Recovered { records, events, open, deadlines, parked } = recover(config, |line| println!("{line}")).await?;
    snapshots::prepare::run(&config.postgres).await?;
    let secs = began.elapsed().as_secs_f64();
    let million = secs / (events as f64 / 1e6);
    let rate = if events < WORTH_A_RATE { String::new() } else { format!(": {million:.1} s for a million events") };
    println!("log          {records} records with {events} events");
    println!("time         {secs:.1} s{rate}");
    println!("reactions    {open} records have open ones; the reactors send these, and no others, once they run");
    println!("deadlines    {deadlines} set");
    println!("keys         commands of the last {} s are known again", config.window.as_secs());
    println!("parked       {parked} records of views; what had been discarded was tried again");
    println!("settings     the defaults, and those of the services that start; see `projector settings`");
    Ok(())
}

/// Fills the tables from the log up to its present end, and passes lines about the progress to `tell`.
///
/// # Errors
/// Also fails if a reactor has begun with these tables, or they have records that the log lacks.
pub async fn recover(config: &Config, tell: impl Fn(String)) -> anyhow::Result<Recovered> {
    let ends = await_ends(config).await?;
    let client = chassis::postgres::connect(&config.postgres, "", "projector recover").await?;
    are_to_be_filled(&client, &ends).await?;
    let shutdown = Shutdown::new();
    let app = App::build(alone(config)?)?;
    let readiness = app.readiness();
    let mut folding = tokio::spawn(app.run(shutdown.clone()));
    let filled =
        async { tokio::try_join!(Past::read_open(config, &ends), await_folded(&client, &ends, &readiness, &tell)) };
    let (past, ()) = tokio::select! {
        filled = filled => filled?,
        ended = &mut folding => {
            ended.context("the projector panicked")??;
            bail!("the projector has ended");
        }
    };
    past.write(config).await?;
    let parked = client.query_one("SELECT count(*) FROM parked WHERE view <> $1", &[&REACTOR]).await?;
    shutdown.trigger();
    folding.await.context("the projector panicked")??;
    Ok(Recovered {
        records: ends.iter().sum::<i64>().cast_unsigned(),
        events: past.events,
        open: past.open.len(),
        deadlines: past.deadlines.len(),
        parked: parked.get::<_, i64>(0).cast_unsigned(),
    })
}

/// Returns the ends of the log's partitions. For a moment, a broker that has just started may not lead them.
async fn await_ends(config: &Config) -> anyhow::Result<Vec<i64>> {
    let began = Instant::now();
    loop {
        match ends(&config.kafka, &config.topic.name).await {
            Err(_) if began.elapsed() < LED_WITHIN => tokio::time::sleep(LOOK_EVERY).await,
            told => return told,
        }
    }
}

/// Returns the settings of a projector that folds everything, reacts to nothing, and takes no port of another one.
fn alone(config: &Config) -> anyhow::Result<Config> {
    let admin_addr = "127.0.0.1:0".parse().context("an address of the loopback interface")?;
    let (feeds, command_urls, listeners) = (Feeds::ALL, Vec::new(), ListenerSettings::default());
    Ok(Config { feeds, command_urls, admin_addr, listeners, ..config.clone() })
}

/// Checks that no reactor has begun with the tables, and that they have nothing that the log lacks.
async fn are_to_be_filled(client: &Client, ends: &[i64]) -> anyhow::Result<()> {
    let found = client.query("SELECT view, partition, next_offset, revision FROM checkpoints", &[]).await;
    let rows = found.map_err(|error| match error.code() {
        Some(&SqlState::UNDEFINED_TABLE) => Misuse::new("the tables do not exist: run `projector migrate`").into(),
        _ => anyhow::Error::new(error).context("read the checkpoints"),
    })?;
    for row in &rows {
        let (view, partition): (&str, i32) = (row.get("view"), row.get("partition"));
        let (next, revision): (i64, i64) = (row.get("next_offset"), row.get("revision"));
        if view == REACTOR && (next > 0 || revision > 0) {
            return Err(Misuse::new(
                "a reactor has begun with these tables, which therefore are not lost. If they are not to be trusted, \
                 stop the projectors, replace the database by an empty one, and run `projector migrate` (`cargo stack \
                 recover --drop` does all of it)",
            )
            .into());
        }
        let end = usize::try_from(partition).ok().and_then(|partition| ends.get(partition)).copied().unwrap_or(0);
        if next > end {
            let missing = next - end;
            bail!(
                "the log lacks the last {missing} records of partition {partition} that {view} has: restore a newer \
                 copy of the log, or replace the database by an empty one, which loses these records"
            );
        }
    }
    Ok(())
}

/// Waits until every feed has folded the log up to `ends`.
async fn await_folded(
    client: &Client,
    ends: &[i64],
    readiness: &Readiness,
    tell: &impl Fn(String),
) -> anyhow::Result<()> {
    let names: Vec<_> = FeedId::all().map(FeedId::name).to_vec();
    let all: i64 = ends.iter().sum();
    let (began, mut told, mut first) = (Instant::now(), Instant::now(), None);
    loop {
        let rows = client.query(include_str!("postgres/folded.sql"), &[&names, &(names.len() as i64)]).await?;
        let of = |row: &tokio_postgres::Row| (row.get::<_, i32>(0), row.get::<_, i64>(1));
        let offsets = rows.iter().map(of).map(|(partition, next)| next.min(ends[partition as usize]));
        let done: i64 = offsets.sum();
        if done >= all {
            return Ok(());
        }
        let before = *first.get_or_insert(done);
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(progress(all, done, done - before, began.elapsed()));
            for (name, reason) in readiness.state() {
                tell(format!("waiting for {name}: {reason}"));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Describes how far the folding is, after `new` records within `elapsed`.
fn progress(all: i64, done: i64, new: i64, elapsed: Duration) -> String {
    let rate = new as f64 / elapsed.as_secs_f64();
    let percent = done * 100 / all.max(1);
    let left = if new > 0 { format!(", about {:.0} s left", (all - done) as f64 / rate) } else { String::new() };
    format!("{done} of {all} records ({percent} %), {rate:.0} a second{left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_tells_the_rate_and_the_time_that_is_left() {
        let ten = Duration::from_secs(10);
        assert_eq!(progress(4000, 1500, 1000, ten), "1500 of 4000 records (37 %), 100 a second, about 25 s left");
        assert_eq!(progress(4000, 0, 0, ten), "0 of 4000 records (0 %), 0 a second");
    }
}
