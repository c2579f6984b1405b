//! `projector reactor`: initializes reactors that have no checkpoints.
//!
//! On a new log, reactors begin at offset 0 on their own. If the log is older and no reactor has a checkpoint, the
//! tables were lost, or its events were never reacted to. Reacting to all of them would repeat every effect, on today's
//! stock. So the reactors wait until an operator decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use chassis::clock::{now_ms, since_epoch};
use chassis::exit::Misuse;
use chassis::kafka::KafkaSettings;
use domain::TimeMs;
use domain::reactions::{Deadline, Step};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use schemas::chain::{Reader, Verdict};
use schemas::record::{Commit, Record};
use schemas::tables::nonce_to_sql;
use schemas::token::{LogId, Token};

use super::open::States;
use super::positions::{begin_checkpoints, connect, names};
use super::sagas::{self, DeadlineChange, RecordPosition};
use crate::audit::ends;
use crate::config::Config;
use crate::fold::Records;
use crate::log_reader::{self, RawRecord};
use crate::parked::{ParkedRecord, REACTOR};
use crate::postgres::columns::ParkedRecords;
use crate::settings;

/// Maximum age of a new log. The reactors of a new stack start within it. Events of a log this young are reacted to
/// even if the tables were lost.
const NEW_WITHIN: Duration = Duration::from_secs(10 * 60);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Maximum number of records in a statement.
const MAX_AT_ONCE: usize = 1000;
/// Reason of a parked record whose reactions were open.
const OPEN: &str = "its reactions were open when the reactors' checkpoints were lost";

/// Message for the operator who has to choose where to begin.
pub(super) const TO_BE_TOLD: &str = "no reactor has a checkpoint, and the log is not new: the tables were lost, or no \
    reactor ran before. Run `projector recover` to go on with what is open, `projector reactor from-end` to skip the \
    reactions to past events, except for their deadlines, or `projector reactor from-beginning` to execute all of them, \
    even if that repeats them. If the log was just grown from another one, run `projector continue` instead";

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
    let past = match from {
        From::Beginning => Past { readers: vec![Reader::START; ends.len()], ..Past::default() },
        From::End => Past::read(config, &ends).await?,
    };
    past.write(config).await?;
    Ok(past.deadlines.len())
}

/// Part of the log that is not reacted to again, except for what is open at its end.
#[derive(Default)]
pub(crate) struct Past {
    /// Progress at the end of this part, by partition.
    readers: Vec<Reader>,
    /// Deadlines that are set and not cancelled.
    pub(crate) deadlines: BTreeMap<(Deadline, String), DeadlineChange>,
    /// Records with open reactions.
    pub(crate) open: Vec<ParkedRecord>,
    pub(crate) events: u64,
    former_logs: FormerLogs,
}

/// The logs that this one was copied from.
#[derive(Default)]
struct FormerLogs {
    ids: BTreeSet<LogId>,
    /// Offset at which the copy of each partition ended.
    ends: BTreeMap<u32, i64>,
}

impl FormerLogs {
    fn note(&mut self, (partition, offset): RecordPosition, record: &Record<'_>) {
        match record {
            Record::Claim(claim) if claim.ends_copy_of().is_some() => drop(self.ends.insert(partition, offset)),
            Record::Commit(Commit { origin: Some(origin), .. }) => {
                self.ids.extend(origin.parse::<Token>().map(|token| token.log));
            }
            Record::Claim(_) | Record::Commit(_) | Record::Fence(_) => {}
        }
    }
}

impl Past {
    /// Reads the log up to `ends`, for its deadlines.
    async fn read(config: &Config, ends: &[i64]) -> anyhow::Result<Self> {
        Self::read_with(config, ends, |_| ()).await
    }

    /// Reads the log up to `ends`, for its deadlines and for what is open at the end.
    pub(crate) async fn read_open(config: &Config, ends: &[i64]) -> anyhow::Result<Self> {
        let mut states = States::default();
        let mut past = Self::read_with(config, ends, |commit| states.fold(commit)).await?;
        let now = TimeMs(now_ms());
        let (deadlines, mut open) = (&mut past.deadlines, Vec::new());
        // To fire one of the past that would have no effect is the same as not to. A later one may have another by then.
        deadlines.retain(|(deadline, aggregate), set| {
            let Some(due_at) = set.due else { return false };
            let id = aggregate.split_once('/').map_or("", |(_, id)| id).into();
            due_at > now || states.leave_open(&Step::Due { deadline: *deadline, id, due_at }, now)
        });
        each_record(config, ends, |(partition, offset), value, record| {
            let Record::Commit(commit) = record else { return };
            let steps = sagas::caused_by(commit, (partition, offset), config.payment_window).steps.into_iter();
            let steps: Vec<_> = steps.map(|(step, _)| step).filter(|step| states.leave_open(step, now)).collect();
            if !steps.is_empty() {
                let (aggregate, version) = (commit.aggregate.to_string(), commit.version);
                let (view, reason, record) = (REACTOR, Some(OPEN.to_owned()), value.to_vec());
                open.push((ParkedRecord { view, aggregate, partition, offset, version, reason, record }, steps));
            }
        })
        .await?;
        // What has ended gives back first, once: a placement that was cancelled would take and give back after that.
        let (gives_back, others): (Vec<_>, Vec<_>) =
            open.into_iter().partition(|(_, steps)| steps.iter().all(Step::gives_back));
        for (record, steps) in gives_back {
            let count = steps.iter().filter(|step| states.carry_out(step, now)).count();
            past.open.extend((count > 0).then_some(record));
        }
        let are_open = |(_, steps): &(_, Vec<Step>)| steps.iter().any(|step| states.leave_open(step, now));
        past.open.extend(others.into_iter().filter(are_open).map(|(record, _)| record));
        Ok(past)
    }

    async fn read_with(config: &Config, ends: &[i64], mut take: impl FnMut(&Commit<'_>)) -> anyhow::Result<Self> {
        let mut past = Self::default();
        let Self { deadlines, events, former_logs, .. } = &mut past;
        let readers = each_record(config, ends, |at, _, record| {
            former_logs.note(at, record);
            let Record::Commit(commit) = record else { return };
            *events += commit.events.len() as u64;
            for set in sagas::caused_by(commit, at, config.payment_window).deadlines {
                let name = (set.deadline, set.aggregate.clone());
                match set.due {
                    Some(_) => drop(deadlines.insert(name, set)),
                    None => drop(deadlines.remove(&name)),
                }
            }
            take(commit);
        });
        past.readers = readers.await?;
        Ok(past)
    }

    /// Writes the checkpoints, the deadlines, and what is open as parked records, which the reactors retry at once.
    ///
    /// # Errors
    /// Also fails if a reactor has begun already.
    pub(crate) async fn write(&self, config: &Config) -> anyhow::Result<()> {
        let partitions = u32::try_from(self.readers.len()).context("too many partitions")?;
        let mut client = connect(&config.postgres).await?;
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
        for records in self.open.chunks(MAX_AT_ONCE) {
            let parked = ParkedRecords::new(records);
            transaction.execute(include_str!("../postgres/insert_parked.sql"), &parked.params()).await?;
        }
        let paused = i64::try_from(config.confirm_within.as_millis()).unwrap_or(i64::MAX);
        transaction.execute(include_str!("begin_open.sql"), &[&REACTOR, &paused]).await?;
        let FormerLogs { ids, ends } = &self.former_logs;
        if ends.len() == self.readers.len() {
            let nonces: Vec<i64> = ids.iter().map(|id| nonce_to_sql(id.lowest_nonce())).collect();
            let ends: Vec<i64> = ends.values().copied().collect();
            transaction.execute(include_str!("grown/keep_former_logs.sql"), &[&nonces, &ends]).await?;
        }
        Ok(transaction.commit().await?)
    }
}

/// Calls `take` with the position, the value and the content of each record before `ends` that counts, and with claims.
/// Returns the states of the readers then.
async fn each_record(
    config: &Config,
    ends: &[i64],
    mut take: impl FnMut(RecordPosition, &[u8], &Record<'_>),
) -> anyhow::Result<Vec<Reader>> {
    config.learn_exceptions().await?;
    let mut readers = vec![Reader::START; ends.len()];
    let filled = (0..).zip(ends).filter(|(_, end)| **end > 0).map(|(partition, _)| (partition, 0));
    let mut batches = log_reader::follow(&config.kafka, &config.topic.name, &filled.collect::<Vec<_>>())?;
    while readers.iter().zip(ends).any(|(reader, end)| reader.next_offset < *end) {
        let batch = tokio::time::timeout(ANSWER_WITHIN, batches.recv()).await;
        let batch = batch.context("timed out waiting for records from Kafka")??;
        for (RawRecord { partition, offset, value }, record) in Records::of(&batch, &config.exceptions)?.iter() {
            if offset >= ends[partition as usize] {
                continue;
            }
            let verdict = readers[partition as usize].read(offset, record)?;
            if let (Verdict::Counts | Verdict::Claimed(_), Some(record)) = (verdict, record) {
                take((partition, offset), value, record);
            }
        }
    }
    Ok(readers)
}

#[cfg(test)]
mod tests {
    use schemas::record::{Claim, Epoch};

    use super::*;

    #[test]
    fn the_logs_that_a_log_was_copied_from_are_found_in_their_copies() {
        let claim = |url: &'static str| Record::Claim(Claim { nonce: 1, url: url.into(), partitions: None });
        let commit = |origin: Option<&'static str>| {
            Record::Commit(Commit {
                epoch: Epoch { claim: 0, nonce: 1 },
                seq: 1,
                command_id: "c".into(),
                at_ms: 0,
                aggregate: "product/cd".into(),
                version: 1,
                events: Vec::new(),
                fingerprint: 0,
                cause: None,
                trace: None,
                origin: origin.map(Into::into),
            })
        };
        let mut former = FormerLogs::default();
        for (at, record) in [
            ((0, 0), claim("copying:events")),
            ((0, 1), commit(Some("k7x2.3-1042"))),
            ((0, 2), commit(Some("abcd.1-2"))),
            ((0, 3), claim("copied:events")),
            ((0, 4), claim("http://127.0.0.1:1")),
            ((0, 5), commit(None)),
            ((1, 9), claim("copied:events")),
        ] {
            former.note(at, &record);
        }
        let ids: Vec<_> = former.ids.iter().map(ToString::to_string).collect();
        assert_eq!((ids, former.ends), (vec!["abcd".to_owned(), "k7x2".to_owned()], BTreeMap::from([(0, 3), (1, 9)])));
    }
}
