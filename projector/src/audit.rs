//! `projector audit`: reads the log from its beginning, and reports where the views differ from a fold of it.
//!
//! The comparison is as of one moment of Postgres: the audit reads the log to its end, waits for the checkpoints, and
//! takes one snapshot of Postgres, whose checkpoints determine how far it reads the log for each view and partition. So
//! the writes of a live system do not appear as differences.
//!
//! It compares every checkpoint with its tally, and the rows of a sample of keys, or all; of the journal, the hash of
//! each closed segment and the number of events of each aggregate. Rows without a record in the log are found only if
//! all are compared.

mod sample;
mod expected;
mod actual;
mod compare;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chassis::exit::{Differs, Misuse};
use chassis::kafka::KafkaSettings;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use schemas::cache::Shown;
use schemas::feeds::{FeedId, PerFeed, StoredView};

pub use compare::Difference;

use crate::config::Config;
use crate::log_reader as log;
use actual::{Checkpoints, Postgres, Redis, Rows, Segment};
use compare::Compared;
use expected::Expected;

/// Time limit for Kafka to return an answer, or the next records.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Time limit for the views to reach a position.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(100);
const TELL_EVERY: Duration = Duration::from_secs(2);
/// Maximum number of differences that are printed.
const TOLD: usize = 100;

/// Number of rows of a view that are folded again if not all are.
pub const DEFAULT_SAMPLE: usize = 1000;

/// Offsets by partition and feed.
type Offsets = Vec<PerFeed<i64>>;

/// Outcome of an audit.
#[derive(Debug, Default)]
pub struct Report {
    pub records: i64,
    pub commits: u64,
    pub checkpoints: usize,
    /// Number of rows compared in Postgres, and, as `cached_rows`, in Redis.
    pub rows: usize,
    pub cached_rows: usize,
    pub differences: Vec<Difference>,
    lines: Vec<String>,
}

/// Executes the command line after `audit`: `--sample N` or `--full`. Prints the outcome, and fails if there are
/// differences.
pub fn run(config: &Config, args: Vec<String>) -> LocalBoxFuture<'_, anyhow::Result<()>> {
    execute(config, args).boxed_local()
}

async fn execute(config: &Config, args: Vec<String>) -> anyhow::Result<()> {
    let most = sample_size(args.into_iter()).map_err(Misuse::new)?;
    let began = Instant::now();
    let report = audit(config, most).await?;
    report.lines.iter().for_each(|line| println!("{line}"));
    println!("time         {:.1} s", began.elapsed().as_secs_f64());
    report.differences.iter().take(TOLD).for_each(|difference| println!("difference   {difference}"));
    println!("differences  {}", report.differences.len());
    if report.differences.is_empty() {
        return Ok(());
    }
    Err(Differs("the views differ from the log".to_owned()).into())
}

/// Parses the command line into the number of rows of a view, or `None` for all.
fn sample_size(mut args: impl Iterator<Item = String>) -> anyhow::Result<Option<usize>> {
    let mut most = Some(DEFAULT_SAMPLE);
    while let Some(arg) = args.next() {
        most = match arg.as_str() {
            "--full" => None,
            "--sample" => {
                let number = args.next().context("--sample requires a number")?;
                Some(number.parse().with_context(|| format!("invalid number of rows: {number:?}"))?)
            }
            other => bail!("unknown option {other:?}; known options: --sample N, --full"),
        };
    }
    Ok(most)
}

/// Audits the views. `most`: number of rows of a view that are folded again; `None`: all, and all are held in memory.
pub async fn audit(config: &Config, most: Option<usize>) -> anyhow::Result<Report> {
    let mut postgres = Postgres::connect(&config.postgres).await?;
    let mut redis = Redis::connect(&config.redis, &config.redis_prefix)?;
    config.learn_exceptions().await?;
    let ends = ends(&config.kafka, &config.topic.name).await?;
    let partitions = u32::try_from(ends.len()).context("too many partitions")?;

    let known = postgres.checkpoints().await?;
    let mut expected = Expected::new(most, &offsets(&known, partitions, |checkpoint| checkpoint.tally_from));
    expected.limit(&ends.iter().map(|end| [*end; FeedId::COUNT]).collect::<Offsets>());
    read(config, &mut expected, ends.iter().sum()).await?;
    expected.close_sample();
    await_checkpoints(&postgres, &ends).await?;

    let of = |feed| expected.rows(feed).into_iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
    let keys = FeedId::all().map(|feed| most.map(|_| of(feed)));
    let (checkpoints, rows, segments) = postgres.snapshot(&keys, partitions).await?;
    let until = offsets(&checkpoints, partitions, |checkpoint| checkpoint.reader.next_offset);
    expected.limit(&until);
    read(config, &mut expected, 0).await?;

    let mut report = Report { commits: expected.commits, ..Report::default() };
    report.records = until.iter().filter_map(|views| views.iter().max()).sum();
    let told =
        format!("log          {} records in {partitions} partitions, {} commits", report.records, report.commits);
    report.lines.push(told);
    report.compare_checkpoints(&expected, &checkpoints);
    report.compare_rows(&expected, &rows, most.is_none());
    report.compare_segments(&expected, &segments);
    report.compare_cache(&mut redis, &mut expected, &until).await?;
    // Redis may show rows that Postgres does not have yet: each is compared at its own version.
    let ends = self::ends(&config.kafka, &config.topic.name).await?;
    expected.limit(&ends.iter().map(|end| [*end; FeedId::COUNT]).collect::<Offsets>());
    read(config, &mut expected, 0).await?;
    report.differences.extend(expected.differences());
    Ok(report)
}

impl Report {
    fn compare_checkpoints(&mut self, expected: &Expected, found: &Checkpoints) {
        for (partition, feeds) in expected.feeds() {
            for (feed, folded) in FeedId::all().into_iter().zip(feeds) {
                self.checkpoints += 1;
                let found = found.get(&(feed, partition));
                self.differences.extend(compare::checkpoint(feed.name(), partition, &folded.at, found));
            }
        }
        let line = format!("checkpoints  {} compared with their tallies", self.checkpoints);
        self.lines.push(line);
    }

    fn compare_rows(&mut self, expected: &Expected, found: &PerFeed<Rows>, all: bool) {
        for feed in FeedId::all() {
            let name = feed.name();
            let Compared { rows, differences, .. } = compare::postgres(name, &expected.rows(feed), &found[feed], all);
            let how = if all { "rows (all)" } else { "rows (sample)" };
            self.lines.push(format!("Postgres     {name}: {rows} {how}"));
            self.rows += rows;
            self.differences.extend(differences);
        }
    }

    fn compare_segments(&mut self, expected: &Expected, found: &[Segment]) {
        self.lines.push(format!("Postgres     journal: {} closed segments, compared by hash", found.len()));
        let compare = |segment: &Segment| compare::segment(segment, expected.hash(segment.partition, segment.number));
        self.differences.extend(found.iter().filter_map(compare));
    }

    /// Compares the rows in Redis, which moves on meanwhile. Rows of later versions are compared with the rest of the
    /// log.
    async fn compare_cache(
        &mut self,
        redis: &mut Redis,
        expected: &mut Expected,
        until: &Offsets,
    ) -> anyhow::Result<()> {
        let partitions = u32::try_from(until.len()).context("too many partitions")?;
        let begun = Instant::now();
        loop {
            let shown = redis.shown(partitions).await.context("read positions from Redis")?;
            let has_come = |(shown, until): (&PerFeed<Option<Shown>>, &PerFeed<i64>)| {
                let mut feeds = FeedId::all().into_iter().filter(|feed| feed.has_rows_in_redis());
                feeds.all(|feed| shown[feed].is_some_and(|shown| shown.offset + 1 >= until[feed]))
            };
            if shown.iter().zip(until).all(has_come) {
                break;
            }
            if begun.elapsed() > PATIENCE {
                bail!("Redis does not catch up with Postgres");
            }
            tokio::time::sleep(RETRY).await;
        }
        for view in StoredView::all() {
            let (name, wanted) = (view.name(), expected.rows(FeedId::View(view)));
            let keys: Vec<_> = wanted.iter().map(|(key, _)| *key).collect();
            let found = redis.rows(view, partitions, &keys).await.context("read rows from Redis")?;
            let Compared { rows, absent, newer, differences } = compare::redis(name, &wanted, &found);
            let newer_rows = newer.len();
            self.lines.push(format!("Redis        {name}: {rows} rows, {absent} absent, {newer_rows} newer"));
            self.cached_rows += rows + newer_rows;
            self.differences.extend(differences);
            expected.expect(view, newer);
        }
        Ok(())
    }
}

/// Returns where the log ends now, by partition. Fails if its beginning is gone.
pub(crate) async fn ends(kafka: &KafkaSettings, topic: &str) -> anyhow::Result<Vec<i64>> {
    let (settings, topic) = (kafka.clone(), topic.to_owned());
    // Creating, querying and dropping a client block the thread.
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = settings.reader("audit").create().context("create a Kafka consumer")?;
        let metadata = consumer.fetch_metadata(Some(&topic), ANSWER_WITHIN).context("read the metadata from Kafka")?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        if partitions == 0 {
            bail!("topic {topic:?} does not exist");
        }
        let end = |partition| {
            let (low, high) = consumer.fetch_watermarks(&topic, partition, ANSWER_WITHIN)?;
            if low > 0 {
                bail!("partition {partition} of the log begins at offset {low}: earlier records are gone");
            }
            Ok(high)
        };
        (0..i32::try_from(partitions)?).map(end).collect()
    });
    asked.await?
}

/// Reads up to the limit. `total`: number of records, for progress messages; 0: none are printed.
async fn read(config: &Config, expected: &mut Expected, total: i64) -> anyhow::Result<()> {
    if expected.is_at_its_limit() {
        return Ok(());
    }
    let mut batches = log::follow(&config.kafka, &config.topic.name, &(0..).zip(expected.from()).collect::<Vec<_>>())?;
    let (begun, mut told) = (Instant::now(), Instant::now());
    while !expected.is_at_its_limit() {
        let batch = tokio::time::timeout(ANSWER_WITHIN, batches.recv()).await;
        let batch = batch.context("timed out waiting for records from Kafka")?.context("read the log")?;
        expected.take(&batch, &config.exceptions)?;
        if total > 0 && told.elapsed() > TELL_EVERY {
            told = Instant::now();
            let read: i64 = expected.from().iter().sum();
            let rate = read as f64 / begun.elapsed().as_secs_f64();
            println!("{read:>12} of {total} records  {rate:.0}/s");
        }
    }
    Ok(())
}

async fn await_checkpoints(postgres: &Postgres, ends: &[i64]) -> anyhow::Result<()> {
    let partitions = u32::try_from(ends.len())?;
    let begun = Instant::now();
    loop {
        let reached = offsets(&postgres.checkpoints().await?, partitions, |checkpoint| checkpoint.reader.next_offset);
        let behind = (0..).zip(reached.iter().zip(ends)).find_map(|(partition, (reached, end)): (u32, _)| {
            let feed = FeedId::all().into_iter().find(|feed| reached[*feed] < *end)?;
            Some((feed.name(), partition, reached[feed], *end))
        });
        let Some((feed, partition, reached, end)) = behind else { return Ok(()) };
        if begun.elapsed() > PATIENCE {
            bail!("{feed} is at offset {reached} of partition {partition} and does not reach {end}");
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn offsets(checkpoints: &Checkpoints, partitions: u32, of: impl Fn(&actual::Checkpoint) -> i64) -> Offsets {
    let of = |feed, partition| checkpoints.get(&(feed, partition)).map_or(0, &of);
    (0..partitions).map(|partition| FeedId::all().map(|feed| of(feed, partition))).collect()
}
