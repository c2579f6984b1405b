//! `projector reactor`: initializes reactors that have no checkpoints.
//!
//! On a new log, reactors begin at offset 0 on their own. If the log is older and no reactor has a checkpoint, the
//! tables were lost, or its events were never reacted to. Reacting to all of them would repeat every effect, on today's
//! stock. So the reactors wait until an operator decides.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chassis::clock::since_epoch;
use chassis::exit::Misuse;
use chassis::kafka::KafkaSettings;
use chassis::postgres::PostgresSettings;
use domain::reactions::Deadline;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use schemas::chain::{Reader, Verdict};
use schemas::record::Record;
use schemas::tables::nonce_to_sql;

use super::positions::{begin_checkpoints, connect, names};
use super::sagas::{self, DeadlineChange};
use crate::audit::ends;
use crate::config::Config;
use crate::fold::Records;
use crate::log_reader::{self, Batch, RawRecord};
use crate::parked::REACTOR;
use crate::settings;

/// Maximum age of a new log. The reactors of a new stack start within it. Events of a log this young are reacted to
/// even if the tables were lost.
const NEW_WITHIN: Duration = Duration::from_secs(10 * 60);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Message for the operator who has to choose where to begin.
pub(super) const TO_BE_TOLD: &str = "no reactor has a checkpoint, and the log is not new: the tables were lost, or no \
    reactor ran before. Run `projector reactor from-end` to skip the reactions to past events, except for their \
    deadlines, or `projector reactor from-beginning` to execute all of them, even if that repeats them. If the log was \
    grown from another one, run `projector continue` instead";

/// Position at which the reactors begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Every event of the log is reacted to.
    Beginning,
    /// Past events are not reacted to, but their deadlines are set.
    End,
}

/// Returns whether the log has a record that is older than [`NEW_WITHIN`], or is a copy of another one.
pub(super) async fn is_old(kafka: &KafkaSettings, topic: &str, partitions: u32) -> Result<bool, KafkaError> {
    let since = since_epoch().saturating_sub(NEW_WITHIN);
    let since = Offset::Offset(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let (kafka, topic) = (kafka.clone(), topic.to_owned());
    // Creating, querying and dropping a client block the thread.
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = kafka.reader("projector-reactor").create()?;
        let mut asked = TopicPartitionList::new();
        for partition in 0..partitions {
            asked.add_partition_offset(&topic, partition.cast_signed(), since)?;
        }
        for told in consumer.offsets_for_times(asked, ANSWER_WITHIN)?.elements() {
            told.error()?;
            let first = match told.offset() {
                Offset::Offset(first) => first,
                // All records are older.
                _ => consumer.fetch_watermarks(&topic, told.partition(), ANSWER_WITHIN)?.1,
            };
            if first > 0 {
                return Ok(true);
            }
        }
        is_copy(&consumer, &topic)
    });
    asked.await.unwrap_or(Err(KafkaError::Canceled))
}

/// Returns whether the log begins with a claim of the tool that copies logs. Blocks.
fn is_copy(consumer: &BaseConsumer, topic: &str) -> Result<bool, KafkaError> {
    if consumer.fetch_watermarks(topic, 0, ANSWER_WITHIN)?.1 == 0 {
        return Ok(false);
    }
    let mut first = TopicPartitionList::new();
    first.add_partition_offset(topic, 0, Offset::Offset(0))?;
    consumer.assign(&first)?;
    let first = consumer.poll(ANSWER_WITHIN).unwrap_or(Err(KafkaError::Canceled))?;
    let first = Record::decode(first.payload().unwrap_or_default());
    Ok(matches!(first, Ok(Some(Record::Claim(claim))) if claim.copies().is_some()))
}

/// Executes the command line after `reactor`.
pub async fn run(config: &Config, mut args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let from = match (args.next().as_deref(), args.next()) {
        (Some("from-beginning"), None) => From::Beginning,
        (Some("from-end"), None) => From::End,
        _ => return Err(Misuse::new("usage: projector reactor from-beginning | from-end").into()),
    };
    let deadlines = begin(config, from).await?;
    println!("reactor checkpoints written; {deadlines} deadlines set");
    Ok(())
}

/// Writes the reactors' first checkpoints and returns the number of deadlines that it set.
///
/// # Errors
/// Also fails if a reactor has begun already.
pub async fn begin(config: &Config, from: From) -> anyhow::Result<usize> {
    settings::compare_payment_window(config).await?;
    let ends = ends(&config.kafka, &config.topic.name).await?;
    let mut past = Past { readers: vec![Reader::START; ends.len()], deadlines: BTreeMap::new() };
    if from == From::End {
        past.read(config, &ends).await?;
    }
    past.write(&config.postgres).await
}

/// Part of the log that is not reacted to.
struct Past {
    /// Progress at the end of this part, by partition.
    readers: Vec<Reader>,
    /// Deadlines that are set and not cancelled.
    deadlines: BTreeMap<(Deadline, String), DeadlineChange>,
}

impl Past {
    async fn read(&mut self, config: &Config, ends: &[i64]) -> anyhow::Result<()> {
        config.learn_exceptions().await?;
        let filled = (0..).zip(ends).filter(|(_, end)| **end > 0).map(|(partition, _)| (partition, 0));
        let mut batches = log_reader::follow(&config.kafka, &config.topic.name, &filled.collect::<Vec<_>>())?;
        while self.readers.iter().zip(ends).any(|(reader, end)| reader.next_offset < *end) {
            let batch = tokio::time::timeout(ANSWER_WITHIN, batches.recv()).await;
            self.take(&batch.context("timed out waiting for records from Kafka")??, ends, config)?;
        }
        Ok(())
    }

    fn take(&mut self, batch: &Batch, ends: &[i64], config: &Config) -> anyhow::Result<()> {
        for (RawRecord { partition, offset, .. }, record) in Records::of(batch, &config.exceptions)?.iter() {
            if offset >= ends[partition as usize] {
                continue;
            }
            let verdict = self.readers[partition as usize].read(offset, record)?;
            let (Verdict::Counts, Some(Record::Commit(commit))) = (verdict, record) else { continue };
            for set in sagas::caused_by(commit, (partition, offset), config.payment_window).deadlines {
                let name = (set.deadline, set.aggregate.clone());
                match set.due {
                    Some(_) => drop(self.deadlines.insert(name, set)),
                    None => drop(self.deadlines.remove(&name)),
                }
            }
        }
        Ok(())
    }

    async fn write(&self, postgres: &PostgresSettings) -> anyhow::Result<usize> {
        let partitions = u32::try_from(self.readers.len()).context("too many partitions")?;
        let mut client = connect(postgres).await?;
        client.batch_execute("SET statement_timeout = 0").await?;
        let transaction = client.transaction().await?;
        begin_checkpoints(&transaction, partitions).await?;
        let column = |of: fn(&Reader) -> i64| self.readers.iter().map(of).collect::<Vec<i64>>();
        let (numbers, next) = ((0..partitions.cast_signed()).collect::<Vec<_>>(), column(|at| at.next_offset));
        let claims = column(|at| at.epoch.map_or(-1, |epoch| epoch.claim));
        let nonces = column(|at| at.epoch.map_or(0, |epoch| nonce_to_sql(epoch.nonce)));
        let (seqs, counted) = (column(|at| at.last_seq.cast_signed()), column(|at| at.last_counted));
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&REACTOR, &numbers, &next, &claims, &nonces, &seqs, &counted];
        if transaction.execute(include_str!("begin_reactor.sql"), &params).await? != u64::from(partitions) {
            bail!("a reactor has begun already; its checkpoints are unchanged");
        }
        let sets: Vec<&DeadlineChange> = self.deadlines.values().collect();
        let (kinds, aggregates) = names(&sets);
        let due: Vec<i64> = sets.iter().filter_map(|set| Some(set.due?.0.cast_signed())).collect();
        let causes: Vec<&str> = sets.iter().map(|set| &*set.cause).collect();
        transaction.execute(include_str!("set_deadlines.sql"), &[&kinds, &aggregates, &due, &causes]).await?;
        transaction.commit().await?;
        Ok(sets.len())
    }
}
