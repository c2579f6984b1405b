//! Reads the names of the partitions' aggregates, for engines that lack some, beside everything else.

use std::sync::Arc;
use std::time::Duration;

use chassis::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Loaded;
use super::postgres::Store;

/// Postgres failed, or has nothing more yet.
const RETRY: Duration = Duration::from_secs(1);

/// A partition that lacks names from an offset on.
pub(super) type NamesRequest = (u32, i64);

pub(super) struct NamesReader {
    pub(super) store: Arc<Store>,
    /// Each partition asks once at a time.
    pub(super) lacking: (async_channel::Sender<NamesRequest>, async_channel::Receiver<NamesRequest>),
    pub(super) to_engines: Arc<[mpsc::UnboundedSender<Loaded>]>,
}

impl NamesReader {
    /// Page by page, as one partition after the other asks. It rests for as long as a page takes: others want something, too.
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
                    // An engine that ended wants nothing.
                    let _ = self.to_engines[partition as usize].send(Loaded::Names(names));
                    begun.elapsed()
                }
                found => {
                    if let Err(error) = found {
                        tracing::debug!(kafka.partition = partition, error = %error, "names cannot be read");
                    }
                    let _ = ask_again.try_send((partition, from));
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}
