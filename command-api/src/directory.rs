//! Looks up the owner of a partition: its last records name its newest claim, and the claim names the owner's URL.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use schemas::record::{Claim, OtherPartitions, Record};
use schemas::token::LogId;
use tokio::sync::Mutex;

use crate::kafka::reader::{LogReader, NoAnswer};

/// Time within which a live owner appends a record in response to any command.
const ALIVE_FOR: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(250);
const MAX_JITTER_MS: u64 = 250;
/// Number of last records that are searched for the newest claim. Late records of a deposed owner may follow the claim
/// that ended its epoch, so the newest claim that any of them names is the owner's.
const LOOKED_AT: u32 = 64;

pub(crate) struct Directory {
    reader: LogReader,
    /// Last known owners, indexed by partition.
    known: Vec<KnownOwner>,
}

#[derive(Default)]
struct KnownOwner {
    /// The owner's URL, and the time at which the log was read.
    url: RwLock<Option<(Arc<str>, Instant)>>,
    /// Held while the log is read, so that concurrent callers share one read.
    asking: Mutex<()>,
}

impl Directory {
    pub(crate) fn new(reader: LogReader, partitions: u32) -> Self {
        Self { reader, known: (0..partitions).map(|_| KnownOwner::default()).collect() }
    }

    /// Returns the owner's URL from memory, or else from the log. `None` if there is no claim yet or the log does not
    /// answer.
    pub(crate) async fn url(&self, partition: u32) -> Option<Arc<str>> {
        match self.known[partition as usize].get() {
            Some((url, _)) => Some(url),
            None => self.url_since(partition, Instant::now()).await,
        }
    }

    /// Returns the owner's URL as of `time` or later, for a caller that found the known one to be wrong. Concurrent
    /// callers share one read of the log.
    pub(crate) async fn url_since(&self, partition: u32, time: Instant) -> Option<Arc<str>> {
        let known = &self.known[partition as usize];
        let _asking = known.asking.lock().await;
        if let Some((url, _)) = known.get().filter(|(_, looked)| *looked >= time) {
            return Some(url);
        }
        let begun = Instant::now();
        let url = self.look_up(partition).await?;
        known.set(url.clone(), begun);
        Some(url)
    }

    async fn look_up(&self, partition: u32) -> Option<Arc<str>> {
        let last = self.reader.last_records(partition, LOOKED_AT).await.ok()?;
        let claim = newest_claim(last.iter().map(|(offset, value)| (*offset, value.as_slice())))?;
        let claim = claim_at(&self.reader, partition, claim).await.ok()??;
        // A claim of the tool that copies or closes a log names no owner.
        claim.url.starts_with("http").then(|| claim.url.as_ref().into())
    }
}

/// Returns the offset of the newest claim that is among the records or named by one.
fn newest_claim<'a>(records: impl Iterator<Item = (i64, &'a [u8])>) -> Option<i64> {
    let claim = |(offset, value)| {
        let claim = match Record::decode(value).ok()?? {
            Record::Claim(_) => offset,
            Record::Commit(commit) => commit.epoch.claim,
            Record::Fence(fence) => fence.epoch.claim,
        };
        // A record cannot belong to a claim at a later offset.
        Some(claim).filter(|claim| *claim <= offset)
    };
    records.filter_map(claim).max()
}

/// Returns the claim at an offset, or `None` if there is none.
async fn claim_at(reader: &LogReader, partition: u32, offset: i64) -> Result<Option<Claim<'static>>, NoAnswer> {
    let value = reader.record(partition, offset).await?;
    Ok(value.and_then(|value| match Record::decode(&value).ok()?? {
        Record::Claim(Claim { nonce, url, partitions }) => {
            Some(Claim { nonce, url: url.into_owned().into(), partitions })
        }
        Record::Commit(_) | Record::Fence(_) => None,
    }))
}

/// Reason why the log cannot be written, or not by this instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnfitLog {
    #[error(transparent)]
    Partitions(#[from] OtherPartitions),
    #[error("the log was closed and continues in the topic {0:?}: set EVENTS_TOPIC to it")]
    Closed(String),
    #[error("partition {partition} is not a complete copy of the log {of:?}: run `command-api grow {of}` to its end")]
    Unfinished { partition: u32, of: String },
}

/// Compares the topic's number of partitions with the one that the log was written with, before anything is claimed,
/// and checks that the log is neither closed nor an unfinished copy of another one. Added partitions are empty and carry
/// no evidence, but partition 0 does: its newest claim and its first one. Waits until Kafka answers.
pub(crate) async fn check_log(reader: &LogReader, found: u32) -> Result<(), UnfitLog> {
    let newest = until_answered(|| newest_claim_of(reader, 0)).await;
    let first = until_answered(|| first_claim(reader)).await;
    for claim in newest.iter().chain(&first) {
        claim.check_partitions(found)?;
        if let Some(topic) = claim.continues_in() {
            return Err(UnfitLog::Closed(topic.to_owned()));
        }
    }
    let Some(of) = first.as_ref().and_then(Claim::copies) else { return Ok(()) };
    for partition in 0..found {
        let newest = until_answered(|| newest_claim_of(reader, partition)).await;
        if newest.is_none_or(|claim| claim.copies().is_some()) {
            return Err(UnfitLog::Unfinished { partition, of: of.to_owned() });
        }
    }
    Ok(())
}

async fn until_answered<T, F: Future<Output = Result<T, NoAnswer>>>(mut ask: impl FnMut() -> F) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(NoAnswer) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn newest_claim_of(reader: &LogReader, partition: u32) -> Result<Option<Claim<'static>>, NoAnswer> {
    let last = reader.last_records(partition, LOOKED_AT).await?;
    match newest_claim(last.iter().map(|(offset, value)| (*offset, value.as_slice()))) {
        Some(offset) => claim_at(reader, partition, offset).await,
        None => Ok(None),
    }
}

async fn first_claim(reader: &LogReader) -> Result<Option<Claim<'static>>, NoAnswer> {
    match reader.last_offset(0).await? {
        Some(_) => claim_at(reader, 0, 0).await,
        None => Ok(None),
    }
}

/// Returns whether the partition has no live owner, judging by its log: a live owner appends a record in response to
/// any command. The log is read twice, because the timestamp of its last record is from another host's clock. If Kafka
/// does not answer, the owner counts as alive.
pub(crate) async fn is_silent(reader: &LogReader, partition: u32) -> bool {
    let last = match reader.last_offset(partition).await {
        Ok(Some(last)) => last,
        Ok(None) => return true,
        Err(NoAnswer) => return false,
    };
    // Several instances may suspect the same owner; the jitter keeps them from claiming at once.
    let jitter = Duration::from_millis(rand::random_range(0..MAX_JITTER_MS));
    tokio::time::sleep(ALIVE_FOR + jitter).await;
    reader.last_offset(partition).await == Ok(Some(last))
}

impl KnownOwner {
    fn get(&self) -> Option<(Arc<str>, Instant)> {
        self.url.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, url: Arc<str>, looked: Instant) {
        *self.url.write().unwrap_or_else(PoisonError::into_inner) = Some((url, looked));
    }
}

/// Returns the log's id, or `None` as long as partition 0 has no first claim or cannot be read.
pub(crate) async fn log_id(reader: &LogReader) -> Option<LogId> {
    reader.last_offset(0).await.ok()??;
    Some(LogId::of_nonce(claim_at(reader, 0, 0).await.ok()??.nonce))
}

#[cfg(test)]
mod tests {
    use schemas::record::{Claim, Epoch, Fence};

    use super::*;

    fn newest(records: &[(i64, Record<'_>)]) -> Option<i64> {
        let encoded = records.iter().map(|(offset, record)| {
            let mut value = Vec::new();
            record.encode(&mut value);
            (*offset, value)
        });
        let encoded: Vec<_> = encoded.collect();
        newest_claim(encoded.iter().map(|(offset, value)| (*offset, value.as_slice())))
    }

    #[test]
    fn late_records_of_a_deposed_owner_do_not_lead_back_to_it() {
        let claim = || Record::Claim(Claim { nonce: 7, url: "http://127.0.0.1:1".into(), partitions: None });
        let under = |claim, seq| Record::Fence(Fence { epoch: Epoch { claim, nonce: 7 }, seq });
        assert_eq!(newest(&[(50, claim()), (51, under(50, 1))]), Some(50));
        assert_eq!(newest(&[(51, under(50, 1)), (52, claim()), (53, under(50, 2)), (54, under(50, 3))]), Some(52));
        assert_eq!(newest(&[(53, under(50, 2)), (54, under(52, 1)), (55, under(50, 3))]), Some(52));
        assert_eq!(newest(&[(53, under(50, 2)), (54, under(1_000, 1))]), Some(50), "no claim can exist there yet");
        assert_eq!(newest(&[]), None);
    }
}
