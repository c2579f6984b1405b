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
use schemas::events::WireEvent;
use schemas::idempotency::IdempotencyKey;
use schemas::record::{Commit, Record};
use schemas::tables::repeat_key;
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
            let worker = Worker {
                store: store.clone(),
                reader: reader.clone(),
                waiting: waiting.clone(),
                to_engines: to_engines.clone(),
            };
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
    reader: LogReader,
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
        let kept = states.into_iter().zip(repeats).map(|(state, repeat)| {
            let checkpoint = match (&state, &repeat) {
                (Some((one, _)), Some((other, _))) => *one.min(other),
                (Some((one, _)), None) | (None, Some((one, _))) => *one,
                (None, None) => return None,
            };
            Some(Kept {
                checkpoint,
                state: state.map(|(_, state)| state),
                repeat: repeat.and_then(|(_, repeat)| repeat),
            })
        });
        let complete =
            |(kept, asked): (Option<Kept>, &Asked)| kept.filter(|kept| kept.state.is_some() || !asked.wanted.state);
        Ok(kept.zip(batch).map(complete).collect())
    }

    async fn states(&self, batch: &[Asked]) -> Result<Vec<Option<(i64, KeptState)>>, StoreError> {
        let wanted = batch.iter().map(|asked| asked.wanted.state.then_some((&asked.wanted.aggregate, asked.partition)));
        self.store.states(wanted.collect()).await
    }

    /// The table leads to records, and they tell whose they are.
    async fn repeats(&self, batch: &[Asked]) -> Result<Vec<Option<(i64, Option<Repeat>)>>, StoreError> {
        let key = |asked: &Asked| {
            let key = asked.wanted.key.as_ref()?;
            Some((repeat_key(asked.wanted.aggregate.as_str(), key.as_str()), asked.partition))
        };
        let found = self.store.repeats(batch.iter().map(key).collect()).await?;
        let mut repeats = Vec::with_capacity(batch.len());
        for (asked, found) in batch.iter().zip(found) {
            repeats.push(match found {
                None => None,
                Some((checkpoint, offsets)) => self.repeat_at(asked, &offsets).await.map(|found| (checkpoint, found)),
            });
        }
        Ok(repeats)
    }

    /// `None`: a record that should be there could not be read.
    async fn repeat_at(&self, asked: &Asked, offsets: &[i64]) -> Option<Option<Repeat>> {
        for offset in offsets {
            let value = self.reader.record(asked.partition, *offset).await?;
            let Ok(Some(Record::Commit(commit))) = Record::decode(&value) else { continue };
            let is_this = |key: &IdempotencyKey| key.as_str() == commit.command_id;
            if commit.aggregate == asked.wanted.aggregate.as_str() && asked.wanted.key.as_ref().is_some_and(is_this) {
                let events = commit.events.iter().map(WireEvent::name).collect();
                let Commit { fingerprint, version, .. } = commit;
                return Some(Some(Repeat { offset: *offset, fingerprint, version, events }));
            }
        }
        Some(None)
    }
}
