//! What stands between being prepared and claiming: the owner is asked to let go, or is given time to show that it
//! lives.
//!
//! It is courtesy, not safety: whoever claims owns. Without it commands would be decided and then not count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::directory::{self, Directory};
use crate::kafka::reader::LogReader;
use crate::peers::Links;

/// An owner that the log does not tell of in this time is claimed over.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
/// An owner drains in milliseconds; one that does not answer is claimed over.
const LETS_GO_WITHIN: Duration = Duration::from_secs(2);

pub(crate) struct Handover {
    pub(crate) partition: u32,
    pub(crate) own_url: Arc<str>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) links: Arc<Links>,
    pub(crate) log_reader: LogReader,
    /// Whether to claim.
    waiting: Option<BoxFuture<'static, bool>>,
    /// Instances that wait for this one to let go.
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

    /// For a partition that is assigned to this instance.
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
                    "asked the owner"
                );
            }
            true
        }));
    }

    /// For a partition whose owner does not answer.
    pub(crate) fn await_silence(&mut self) {
        let (partition, reader) = (self.partition, self.log_reader.clone());
        self.waiting = Some(Box::pin(async move {
            let silent = directory::is_silent(&reader, partition).await;
            tracing::info!(kafka.partition = partition, silent, "suspected the owner");
            silent
        }));
    }

    /// Whether to claim; waits for ever where nothing is under way. Cancel safe.
    pub(crate) async fn cleared(&mut self) -> bool {
        let Some(waiting) = &mut self.waiting else { return std::future::pending().await };
        let claims = waiting.await;
        self.waiting = None;
        claims
    }

    /// By [`Self::released`].
    pub(crate) fn notify_when_released(&mut self, requester: oneshot::Sender<()>) {
        self.requesters.push(requester);
    }

    /// This instance does not own the partition.
    pub(crate) fn released(&mut self) {
        for requester in self.requesters.drain(..) {
            // It may have claimed without waiting longer.
            let _ = requester.send(());
        }
    }
}
