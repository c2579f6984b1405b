//! What is kept of the partitions in Postgres: how far, states of aggregates that are not in memory, and keys that took
//! effect.
//!
//! The projector keeps it; here it is only read, many at once, and never by an engine that has something else to do.
//!
//! Invariant: what is read comes with the checkpoint of the same moment, from one statement: whoever uses it knows
//! which events it has.

mod postgres;
mod watermarks;

use std::sync::Arc;

use chassis::env::Secret;
use chassis::shutdown::{Shutdown, Tasks};
use tokio::sync::{mpsc, watch};

use crate::kafka::reader::LogReader;
use crate::partition::{Kept, KeptState, Repeat, Unavailable, Wanted};
use postgres::{Store, StoreError};
pub(crate) use watermarks::Known;

/// What may wait to be asked, of all partitions.
const MAX_ASKED: usize = 16_384;
/// Asked in one statement.
const MAX_BATCH: usize = 256;
/// Statements under way at once.
const WORKERS: usize = 4;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keeper {
    asked: async_channel::Sender<Asked>,
}

struct Asked {
    partition: u32,
    wanted: Wanted,
}

/// The answer to [`Keeper::ask`].
#[derive(Debug)]
pub(crate) struct Brought {
    pub(crate) wanted: Wanted,
    pub(crate) kept: Result<Kept, Unavailable>,
}

/// One partition's end.
pub(crate) struct Shelf {
    /// Bounded by what may be asked.
    pub(crate) brought: mpsc::UnboundedReceiver<Brought>,
    /// Changes at least every [`watermarks::EVERY`], if only to the same.
    pub(crate) known: watch::Receiver<Known>,
}

impl Keeper {
    /// Its tasks end with `shutdown`. `wrong` is told when the tables turn out to be of another log.
    pub(crate) fn start(
        url: &Secret,
        partitions: u32,
        reader: &LogReader,
        tasks: &mut Tasks,
        wrong: watch::Sender<Option<String>>,
        shutdown: &Shutdown,
    ) -> anyhow::Result<(Self, Vec<Shelf>)> {
        let store = Arc::new(Store::connect(url, WORKERS + 1)?);
        let (asked, waiting) = async_channel::bounded(MAX_ASKED);
        let (to_engines, brought): (Vec<_>, Vec<_>) = (0..partitions).map(|_| mpsc::unbounded_channel()).unzip();
        let (tell, known): (Vec<_>, Vec<_>) = (0..partitions).map(|_| watch::channel(Known::NotYet)).unzip();
        let to_engines: Arc<[_]> = to_engines.into();
        for _ in 0..WORKERS {
            let worker = Worker { store: store.clone(), waiting: waiting.clone(), to_engines: to_engines.clone() };
            tasks.spawn("keeper", worker.run(shutdown.clone()));
        }
        tasks.spawn("checkpoints", watermarks::follow(store, reader.clone(), tell, wrong, shutdown.clone()));
        let shelves = brought.into_iter().zip(known).map(|(brought, known)| Shelf { brought, known }).collect();
        Ok((Self { asked }, shelves))
    }

    pub(crate) fn ask(&self, partition: u32, wanted: Wanted) -> Result<(), Unavailable> {
        self.asked.try_send(Asked { partition, wanted }).map_err(|_| Unavailable)
    }
}

struct Worker {
    store: Arc<Store>,
    waiting: async_channel::Receiver<Asked>,
    to_engines: Arc<[mpsc::UnboundedSender<Brought>]>,
}

impl Worker {
    async fn run(self, shutdown: Shutdown) {
        loop {
            let first = tokio::select! {
                first = self.waiting.recv() => first,
                () = shutdown.requested() => return,
            };
            let Ok(first) = first else { return };
            let mut batch = vec![first];
            while batch.len() < MAX_BATCH
                && let Ok(next) = self.waiting.try_recv()
            {
                batch.push(next);
            }
            let kept = self.bring(&batch).await;
            if let Err(error) = &kept {
                tracing::warn!(
                    error = format!("{error:#}"),
                    count = batch.len(),
                    "what is kept of aggregates cannot be read"
                );
            }
            let mut kept = kept.unwrap_or_default().into_iter();
            for Asked { partition, wanted } in batch {
                let kept = kept.next().flatten().ok_or(Unavailable);
                // An engine that ended wants nothing.
                let _ = self.to_engines[partition as usize].send(Brought { wanted, kept });
            }
        }
    }

    /// In the order of the batch; `None` where a part could not be read.
    async fn bring(&self, batch: &[Asked]) -> anyhow::Result<Vec<Option<Kept>>> {
        let (states, repeats) = tokio::try_join!(self.states(batch), self.repeats(batch))?;
        let kept = batch.iter().zip(states.into_iter().zip(repeats)).map(|(Asked { wanted, .. }, (state, repeat))| {
            if wanted.state != state.is_some() || wanted.key.is_some() != repeat.is_some() {
                return None;
            }
            let checkpoints = state.iter().map(|(checkpoint, _)| *checkpoint);
            let checkpoint = checkpoints.chain(repeat.iter().map(|(checkpoint, _)| *checkpoint)).min()?;
            let repeat = repeat.and_then(|(_, repeat)| repeat);
            Some(Kept { checkpoint, state: state.map(|(_, state)| state), repeat })
        });
        Ok(kept.collect())
    }

    async fn states(&self, batch: &[Asked]) -> Result<Vec<Option<(i64, KeptState)>>, StoreError> {
        let wanted = batch.iter().map(|asked| asked.wanted.state.then_some((&asked.wanted.aggregate, asked.partition)));
        self.store.states(wanted.collect()).await
    }

    async fn repeats(&self, batch: &[Asked]) -> Result<Vec<Option<(i64, Option<Repeat>)>>, StoreError> {
        let wanted = batch.iter().map(|Asked { partition, wanted }| {
            let key = wanted.key.as_ref()?;
            Some((&wanted.aggregate, key, *partition))
        });
        self.store.repeats(wanted.collect()).await
    }
}
