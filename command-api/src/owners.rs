//! Who owns a partition: its last record names its claim, and the claim names the owner's url.

use std::sync::{Arc, PoisonError, RwLock};

use schemas::record::Record;
use schemas::token::LogId;
use tokio::sync::Mutex;

use crate::kafka::reader::LogReader;

pub(crate) struct Owners {
    reader: LogReader,
    /// By partition.
    known: Vec<Known>,
}

#[derive(Default)]
struct Known {
    url: RwLock<Option<Arc<str>>>,
    /// Held while the log is asked, so that many callers ask once.
    asking: Mutex<()>,
}

impl Owners {
    pub(crate) fn new(reader: LogReader, partitions: u32) -> Self {
        Self { reader, known: (0..partitions).map(|_| Known::default()).collect() }
    }

    /// From memory, until [`Self::forget`]; else from the log. `None`: nobody claimed it yet.
    pub(crate) async fn url(&self, partition: u32) -> Option<Arc<str>> {
        let known = &self.known[partition as usize];
        if let Some(url) = known.get() {
            return Some(url);
        }
        let _asking = known.asking.lock().await;
        if let Some(url) = known.get() {
            return Some(url);
        }
        let url = self.look_up(partition).await?;
        known.set(Some(url.clone()));
        Some(url)
    }

    /// The url led nowhere, or to an instance that owns the partition no more.
    pub(crate) fn forget(&self, partition: u32) {
        self.known[partition as usize].set(None);
    }

    async fn look_up(&self, partition: u32) -> Option<Arc<str>> {
        let last = self.reader.last_record(partition).await?;
        let claim = match Record::decode(&last).ok()?? {
            Record::Claim(claim) => return Some(claim.url.as_ref().into()),
            Record::Commit(commit) => commit.epoch.claim,
            Record::Fence(fence) => fence.epoch.claim,
        };
        match Record::decode(&self.reader.record(partition, claim).await?).ok()?? {
            Record::Claim(claim) => Some(claim.url.as_ref().into()),
            Record::Commit(_) | Record::Fence(_) => None,
        }
    }
}

impl Known {
    fn get(&self) -> Option<Arc<str>> {
        self.url.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, url: Option<Arc<str>>) {
        *self.url.write().unwrap_or_else(PoisonError::into_inner) = url;
    }
}

/// `None` as long as partition 0 has no first claim.
pub(crate) async fn log_id(reader: &LogReader) -> Option<LogId> {
    reader.last_record(0).await?;
    match Record::decode(&reader.record(0, 0).await?).ok()?? {
        Record::Claim(claim) => Some(LogId::of_nonce(claim.nonce)),
        Record::Commit(_) | Record::Fence(_) => None,
    }
}
