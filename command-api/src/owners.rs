//! Who owns a partition: its last records name its newest claim, and the claim names the owner's url.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use schemas::record::{Claim, OtherPartitions, Record};
use schemas::token::LogId;
use tokio::sync::Mutex;

use crate::kafka::reader::LogReader;

/// An owner that appends within this time lives.
const ALIVE_FOR: Duration = Duration::from_secs(1);
const MAX_JITTER_MS: u64 = 250;
/// A deposed owner's late records may stand behind the claim that ended its epoch: the newest claim that any of so many
/// records names is the owner's.
const LOOKED_AT: u32 = 64;

pub(crate) struct Owners {
    reader: LogReader,
    /// By partition.
    known: Vec<Known>,
}

#[derive(Default)]
struct Known {
    /// With the time at which the log was looked at.
    url: RwLock<Option<(Arc<str>, Instant)>>,
    /// Held while the log is asked, so that many callers ask once.
    asking: Mutex<()>,
}

impl Owners {
    pub(crate) fn new(reader: LogReader, partitions: u32) -> Self {
        Self { reader, known: (0..partitions).map(|_| Known::default()).collect() }
    }

    /// From memory, else from the log. `None`: nobody claimed it yet.
    pub(crate) async fn url(&self, partition: u32) -> Option<Arc<str>> {
        match self.known[partition as usize].get() {
            Some((url, _)) => Some(url),
            None => self.url_since(partition, Instant::now()).await,
        }
    }

    /// As the log tells at this time or later, for somebody who found that what was known is wrong. Many who ask at
    /// once share one look.
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
        let last = self.reader.last_records(partition, LOOKED_AT).await;
        let claim = newest_claim(last.iter().map(|(offset, value)| (*offset, value.as_slice())))?;
        Some(claim_at(&self.reader, partition, claim).await?.url.as_ref().into())
    }
}

/// Returns the offset of the newest claim that the records are or name.
fn newest_claim<'a>(records: impl Iterator<Item = (i64, &'a [u8])>) -> Option<i64> {
    let claim = |(offset, value)| {
        let claim = match Record::decode(value).ok()?? {
            Record::Claim(_) => offset,
            Record::Commit(commit) => commit.epoch.claim,
            Record::Fence(fence) => fence.epoch.claim,
        };
        // Nobody writes under a claim that is yet to come.
        Some(claim).filter(|claim| *claim <= offset)
    };
    records.filter_map(claim).max()
}

/// Returns the claim at an offset; `None`: none is there, or nobody answers.
async fn claim_at(reader: &LogReader, partition: u32, offset: i64) -> Option<Claim<'static>> {
    match Record::decode(&reader.record(partition, offset).await?).ok()?? {
        Record::Claim(Claim { nonce, url, partitions }) => {
            Some(Claim { nonce, url: url.into_owned().into(), partitions })
        }
        Record::Commit(_) | Record::Fence(_) => None,
    }
}

/// Compares how many partitions the topic has with how many the log was written over, before anything is claimed. Partitions
/// that were added are empty and tell nothing, but partition 0 does: by its newest claim, and by its first one.
pub(crate) async fn check_partitions(reader: &LogReader, found: u32) -> Result<(), OtherPartitions> {
    let last = reader.last_records(0, LOOKED_AT).await;
    let newest = newest_claim(last.iter().map(|(offset, value)| (*offset, value.as_slice())));
    for offset in newest.into_iter().chain((!last.is_empty()).then_some(0)) {
        if let Some(claim) = claim_at(reader, 0, offset).await {
            claim.check_partitions(found)?;
        }
    }
    Ok(())
}

/// Whether nobody owns the partition, as far as its log tells: a living owner that is asked anything appends something. The
/// log is looked at twice, because the time of its last record is told by another host's clock.
pub(crate) async fn is_silent(reader: &LogReader, partition: u32) -> bool {
    let Some(last) = last_offset(reader, partition).await else { return true };
    // Many may suspect the same owner: they should not meet.
    let jitter = Duration::from_millis(rand::random_range(0..MAX_JITTER_MS));
    tokio::time::sleep(ALIVE_FOR + jitter).await;
    last_offset(reader, partition).await == Some(last)
}

/// `None` in an empty partition, or without an answer.
async fn last_offset(reader: &LogReader, partition: u32) -> Option<i64> {
    reader.last_records(partition, 1).await.last().map(|(offset, _)| *offset)
}

impl Known {
    fn get(&self) -> Option<(Arc<str>, Instant)> {
        self.url.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, url: Arc<str>, looked: Instant) {
        *self.url.write().unwrap_or_else(PoisonError::into_inner) = Some((url, looked));
    }
}

/// `None` as long as partition 0 has no first claim.
pub(crate) async fn log_id(reader: &LogReader) -> Option<LogId> {
    last_offset(reader, 0).await?;
    Some(LogId::of_nonce(claim_at(reader, 0, 0).await?.nonce))
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
    fn late_records_of_a_deposed_owner_lead_nobody_back_to_it() {
        let claim = || Record::Claim(Claim { nonce: 7, url: "http://127.0.0.1:1".into(), partitions: None });
        let under = |claim, seq| Record::Fence(Fence { epoch: Epoch { claim, nonce: 7 }, seq });
        assert_eq!(newest(&[(50, claim()), (51, under(50, 1))]), Some(50));
        assert_eq!(newest(&[(51, under(50, 1)), (52, claim()), (53, under(50, 2)), (54, under(50, 3))]), Some(52));
        assert_eq!(newest(&[(53, under(50, 2)), (54, under(52, 1)), (55, under(50, 3))]), Some(52));
        assert_eq!(newest(&[(53, under(50, 2)), (54, under(1_000, 1))]), Some(50), "nobody can have claimed there yet");
        assert_eq!(newest(&[]), None);
    }
}
