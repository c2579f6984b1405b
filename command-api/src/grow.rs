//! `command-api grow`: copies a log to a new one with more partitions while it is written, closes it, and copies the
//! rest.
//!
//! The records that count are copied in the order of their partition. The new number of partitions is a multiple of the
//! old one, so each new partition has records of one old partition only, in their order. They keep everything but their
//! place in the chain, so that the new log is an ordinary one, written by one owner after another: the tool is the first
//! of them. A run that ended early is repeated: the next one claims the new partitions again and skips what they have.
//!
//! Invariant: until the old log is closed, the copy changes nothing in it and may be given up. A partition of the old
//! log is closed by its last record that counts, so no owner can acknowledge a command that the copy lacks.
//!
//! Invariant: no owner claims a partition of the new log before its copy is complete.

mod copy;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chassis::env::Env;
use chassis::exit::{self, Misuse};
use chassis::kafka::KafkaSettings;
use chassis::kafka::topic::TopicFacts;
use chassis::postgres::PostgresSettings;
use chassis::readiness::Readiness;
use chassis::shutdown::Shutdown;
use futures_util::future::try_join_all;
use schemas::exceptions::Exceptions;
use schemas::feeds::FeedId;
use schemas::topic::{self, LogTopic};

use crate::config;
use crate::directory;
use crate::kafka::producer::Producers;
use crate::kafka::reader::LogReader;
use crate::kafka::topic::create;
use copy::{PartitionCopy, Target};

/// Maximum time for Kafka to show a topic, or to acknowledge a record.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// Maximum number of records that the copy, and the views of the new log, may be behind when the old log is closed.
const NEAR: i64 = 2_000;
const LOOK_EVERY: Duration = Duration::from_millis(100);
const TELL_EVERY: Duration = Duration::from_secs(2);

/// The log to copy, and the one to make.
#[derive(Debug)]
pub struct Growth {
    pub kafka: KafkaSettings,
    /// Topic of the log to copy.
    pub from: String,
    pub to: LogTopic,
    /// Exceptions of the log to copy.
    pub exceptions: Arc<Exceptions>,
    /// Database of the new log's projectors. The old log is closed once they have nearly caught up, and the tool ends
    /// once they have. Without one, it waits for no projector.
    pub postgres: Option<PostgresSettings>,
}

/// Runs the subcommand, with the settings of the services of the new log.
pub async fn run(env: &Env, mut args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let usage = "usage: grow TOPIC (the topic of the log to copy)";
    let from = args.next().ok_or_else(|| Misuse::new(usage))?;
    exit::no_arguments(args)?;
    let growth = Growth {
        kafka: KafkaSettings::from_env(env)?,
        from,
        to: config::topic(env)?,
        exceptions: Arc::new(Exceptions::honouring(config::exception_keys(env)?.unwrap_or_default())),
        postgres: PostgresSettings::optional_from_env(env)?,
    };
    grow(&growth, |line| println!("{line}")).await
}

/// Makes the new log and closes the old one. May be called again after a failure at any point.
pub async fn grow(growth: &Growth, tell: impl Fn(String)) -> anyhow::Result<()> {
    let Growth { kafka, from, to, exceptions, postgres } = growth;
    let partitions = to.partitions.context("EVENTS_PARTITIONS is not set").map_err(Misuse::new)?;
    let found = partitions_of(kafka, from, |_| Vec::new()).await?;
    if from == &to.name || partitions <= found || partitions % found != 0 {
        let reason = format!(
            "{from:?} has {found} partitions: EVENTS_PARTITIONS must be a multiple of that, not {partitions}, and \
             EVENTS_TOPIC the name of a new topic, not {:?}",
            to.name
        );
        return Err(Misuse::new(reason).into());
    }
    exceptions.learn(&kafka.values(&topic::exceptions(from)).await?);
    create(kafka, to).await?;
    partitions_of(kafka, &to.name, |is| to.differences(is.partitions, is.replication, |name| is.setting(name))).await?;
    let mut copies = begin(growth, (found, partitions)).await?;
    tell(format!("copying {from:?} with {found} partitions to {:?} with {partitions}", to.name));

    let views = postgres.as_ref().map(Views);
    let mut told = Instant::now();
    loop {
        let copied = try_join_all(copies.iter_mut().map(PartitionCopy::pass)).await?;
        let (copied, behind) = (copied.iter().sum::<i64>(), behind(views.as_ref(), &copies).await);
        // An earlier run that began to close the log has stopped the writes already.
        let is_closing = copies.iter().any(|copy| copy.source.is_closed());
        if is_closing || copied <= NEAR && behind.as_ref().is_ok_and(|behind| *behind <= NEAR) {
            break;
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(format!("{copied} records copied in this pass; {}", describe(&behind)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }

    tell(format!("closing {from:?}; from now on it cannot be written, and the copy must be run to its end"));
    let closed = Instant::now();
    try_join_all(copies.iter_mut().map(PartitionCopy::close)).await?;
    tell(format!("the copy was complete {} ms later", closed.elapsed().as_millis()));
    loop {
        let behind = behind(views.as_ref(), &copies).await;
        if matches!(behind, Ok(0)) {
            break;
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(describe(&behind));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tell(format!("{:?} continues the log; {} ms since it was closed", to.name, closed.elapsed().as_millis()));
    Ok(())
}

/// Claims the new partitions and determines what they have already. The numbers are those of the old and the new log.
async fn begin(growth: &Growth, (found, partitions): (u32, u32)) -> anyhow::Result<Vec<PartitionCopy>> {
    let Growth { kafka, from, to, exceptions, .. } = growth;
    let (old, new) = (LogReader::start(kafka, from)?, LogReader::start(kafka, &to.name)?);
    let id = directory::log_id(&old).await.with_context(|| format!("{from:?} is empty, or Kafka does not answer"))?;
    let (closers, closed) = Producers::new(kafka, from, found, 1)?;
    let (producers, reports) = Producers::new(kafka, &to.name, partitions, 1)?;
    let (closers, producers) = (Arc::new(closers), Arc::new(producers));
    let targets = (0..partitions).zip(reports).map(|(partition, reports)| {
        Target::begin(partition, partitions, from.clone(), new.clone(), producers.clone(), reports)
    });
    let targets = try_join_all(targets).await?;
    let mut by_source: Vec<Vec<Target>> = (0..found).map(|_| Vec::new()).collect();
    for (target, source) in targets.into_iter().zip((0..found).cycle()) {
        by_source[source as usize].push(target);
    }
    let copies = (0..found).zip(by_source).zip(closed).map(|((partition, targets), reports)| PartitionCopy {
        partition,
        partitions: (found, partitions),
        log: id,
        continues_in: to.name.clone(),
        log_reader: old.clone(),
        exceptions: exceptions.clone(),
        source: schemas::chain::Reader::START,
        closer: closers.clone(),
        closed: reports,
        targets,
    });
    Ok(copies.collect())
}

async fn partitions_of(
    kafka: &KafkaSettings,
    topic: &str,
    judge: impl Fn(&TopicFacts) -> Vec<String>,
) -> anyhow::Result<u32> {
    let (condition, shutdown) = (Readiness::new().condition("kafka"), Shutdown::new());
    let found = tokio::time::timeout(ANSWERS_WITHIN, kafka.await_topic(topic, judge, &condition, &shutdown)).await;
    found.with_context(|| format!("Kafka has no topic {topic:?}"))??.context("shut down")
}

/// The views of the new log.
struct Views<'a>(&'a PostgresSettings);

/// Returns the number of records of the new log that not every view has; 0 if no views are to be waited for.
async fn behind(views: Option<&Views<'_>>, copies: &[PartitionCopy]) -> anyhow::Result<i64> {
    let Some(Views(postgres)) = views else { return Ok(0) };
    let client = chassis::postgres::connect(postgres, "", "command-api grow").await?;
    let rows = client.query(include_str!("grow/progress.sql"), &[&&FeedId::names()[..]]).await?;
    let mut behind = 0;
    for target in copies.iter().flat_map(|copy| &copy.targets) {
        let folded = rows.iter().find(|row| row.get::<_, i32>(0).cast_unsigned() == target.partition());
        let folded: i64 = folded.context("the projectors of the new log have not begun")?.get(1);
        behind += (target.end() - folded).max(0);
    }
    Ok(behind)
}

fn describe(behind: &anyhow::Result<i64>) -> String {
    match behind {
        Ok(behind) => format!("the views of the new log are {behind} records behind"),
        Err(error) => format!("waiting for the views of the new log: {error:#}"),
    }
}
