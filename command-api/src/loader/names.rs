//! Reads the names of the partitions' aggregates in the background, for engines that lack some.

use std::sync::Arc;
use std::time::Duration;

use chassis::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Loaded;
use super::postgres::Store;

/// Delay after Postgres failed or had no more names.
const RETRY: Duration = Duration::from_secs(1);

/// A partition, and the offset from which on it lacks names.
pub(super) type NamesRequest = (u32, i64);

pub(super) struct NamesReader {
    pub(super) store: Arc<Store>,
    /// Queue of requests, at most one per partition.
    pub(super) lacking: (async_channel::Sender<NamesRequest>, async_channel::Receiver<NamesRequest>),
    pub(super) to_engines: Arc<[mpsc::UnboundedSender<Loaded>]>,
}

impl NamesReader {
    /// Serves requests until shutdown, a page of one partition after another. It pauses for as long as each page took,
    /// to leave capacity to other readers.
    pub(super) async fn run(self, shutdown: Shutdown) {
        tokio::select! {
            () = self.read() => {}
            () = shutdown.requested() => {}
        }
    }

    async fn read(&self) {
        let (ask_again, lacking) = &self.lacking;
        while let Ok((partition, from)) = lacking.recv().await {
            let begun = Instant::now();
            let pause = match self.store.names(partition, from).await {
                Ok(Some(names)) if names.until > from => {
                    // An engine that has ended needs no names.
                    let _ = self.to_engines[partition as usize].send(Loaded::Names(names));
                    begun.elapsed()
                }
                found => {
                    if let Err(error) = found {
                        tracing::debug!(kafka.partition = partition, error = %error, "could not read aggregate names");
                    }
                    let _ = ask_again.try_send((partition, from));
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}
