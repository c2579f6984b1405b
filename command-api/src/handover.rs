//! Handover before a claim: the owner is asked to release the partition, or is given time to show a sign of life.
//!
//! A courtesy, not a safety measure: a claim alone makes its writer the owner. Without the handover, commands would be
//! decided whose records do not count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::directory::{self, Directory};
use crate::kafka::reader::LogReader;
use crate::peers::Links;

/// Maximum time to look up the owner in the log before claiming anyway.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
/// Maximum time for the owner to release the partition before claiming anyway. An owner drains in milliseconds.
const LETS_GO_WITHIN: Duration = Duration::from_secs(2);

pub(crate) struct Handover {
    pub(crate) partition: u32,
    pub(crate) own_url: Arc<str>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) links: Arc<Links>,
    pub(crate) log_reader: LogReader,
    /// The handover in progress, which returns whether to claim.
    waiting: Option<BoxFuture<'static, bool>>,
    /// Instances that wait for this one to release the partition.
    requesters: Vec<oneshot::Sender<()>>,
}

impl Handover {
    pub(crate) fn new(
        partition: u32,
        own_url: Arc<str>,
        directory: Arc<Directory>,
        links: Arc<Links>,
        log_reader: LogReader,
    ) -> Self {
        Self { partition, own_url, directory, links, log_reader, waiting: None, requesters: Vec::new() }
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.waiting.is_some()
    }

    pub(crate) fn end(&mut self) {
        self.waiting = None;
    }

    /// Asks the owner to release a partition that is assigned to this instance.
    pub(crate) fn ask_owner(&mut self) {
        let (partition, own_url) = (self.partition, self.own_url.clone());
        let (directory, links) = (self.directory.clone(), self.links.clone());
        self.waiting = Some(Box::pin(async move {
            let found = tokio::time::timeout(FOUND_WITHIN, directory.url_since(partition, Instant::now())).await;
            if let Some(url) = found.ok().flatten().filter(|url| *url != own_url) {
                let asked = tokio::time::timeout(LETS_GO_WITHIN, links.let_go(&url, partition)).await;
                tracing::info!(
                    kafka.partition = partition,
                    owner.url = &*url,
                    let_go = asked == Ok(true),
                    "requested handover"
                );
            }
            true
        }));
    }

    /// Checks a suspected owner for signs of life before its partition is claimed.
    pub(crate) fn await_silence(&mut self) {
        let (partition, reader) = (self.partition, self.log_reader.clone());
        self.waiting = Some(Box::pin(async move {
            let silent = directory::is_silent(&reader, partition).await;
            tracing::info!(kafka.partition = partition, silent, "checked a suspected owner");
            silent
        }));
    }

    /// Waits for the handover in progress and returns whether to claim; pending forever if there is none. Cancel safe.
    pub(crate) async fn cleared(&mut self) -> bool {
        let Some(waiting) = &mut self.waiting else { return std::future::pending().await };
        let claims = waiting.await;
        self.waiting = None;
        claims
    }

    /// Registers `requester`, to be notified once the partition is released.
    pub(crate) fn notify_when_released(&mut self, requester: oneshot::Sender<()>) {
        self.requesters.push(requester);
    }

    /// Notifies the requesters that this instance does not own the partition.
    pub(crate) fn released(&mut self) {
        for requester in self.requesters.drain(..) {
            // The requester may have claimed already, without waiting longer.
            let _ = requester.send(());
        }
    }
}
