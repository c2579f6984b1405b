//! What is kept of the partitions in Postgres: how far, states of aggregates that are not in memory, keys that took effect,
//! and the names of all aggregates.
//!
//! The projector keeps it; here it is only read, many at once, and never by an engine that has something else to do. The
//! one exception are the settings that all services share, which whoever comes first keeps.
//!
//! Invariant: what is read comes with the checkpoint of the same moment, from one statement: whoever uses it knows
//! which events it has.

mod names;
mod postgres;
mod watermarks;

use std::sync::Arc;

use chassis::env::Secret;
use chassis::shutdown::{Shutdown, Tasks};
use schemas::settings::Settings;
use tokio::sync::{mpsc, watch};

use crate::kafka::reader::LogReader;
use crate::partition::{Kept, KeptNames, KeptState, Repeat, Unavailable, Wanted};
use names::{Lacking, NamesReader};
use postgres::{AsOf, Found, Store, StoreError};
pub(crate) use watermarks::Known;

/// What may wait to be asked, of all partitions.
const MAX_ASKED: usize = 16_384;
/// Asked in one statement.
const MAX_BATCH: usize = 256;
/// Statements under way at once.
const WORKERS: usize = 4;
/// Long histories that are read at once, beside them: whoever wants something short does not wait for these.
const LONG_WORKERS: usize = 2;
/// Long histories that may wait; of one that finds no room it is said that it cannot be read just now.
const MAX_LONG: usize = 256;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keeper {
    asked: async_channel::Sender<Asked>,
    lacking: async_channel::Sender<Lacking>,
}

struct Asked {
    partition: u32,
    wanted: Wanted,
}

#[derive(Debug)]
pub(crate) enum Brought {
    /// The answer to [`Keeper::ask`].
    Kept(Wanted, Result<Kept, Unavailable>),
    /// The answer to [`Keeper::ask_names`].
    Names(KeptNames),
}

/// One partition's end.
pub(crate) struct Shelf {
    /// Bounded by what may be asked.
    pub(crate) brought: mpsc::UnboundedReceiver<Brought>,
    /// Changes at least every [`watermarks::EVERY`], if only to the same.
    pub(crate) known: watch::Receiver<Known>,
}

impl Keeper {
    /// Its tasks end with `shutdown`. `wrong` is told when the tables turn out to be of another log, or of services that
    /// were told otherwise than `settings`.
    pub(crate) fn start(
        (url, settings): (&Secret, Settings),
        partitions: u32,
        reader: &LogReader,
        tasks: &mut Tasks,
        wrong: watch::Sender<Option<String>>,
        shutdown: &Shutdown,
    ) -> anyhow::Result<(Self, Vec<Shelf>)> {
        let store = Arc::new(Store::connect(url, WORKERS + LONG_WORKERS + 2)?);
        let (asked, waiting) = async_channel::bounded(MAX_ASKED);
        let (long, long_waiting) = async_channel::bounded(MAX_LONG);
        let (to_engines, brought): (Vec<_>, Vec<_>) = (0..partitions).map(|_| mpsc::unbounded_channel()).unzip();
        let (tell, known): (Vec<_>, Vec<_>) = (0..partitions).map(|_| watch::channel(Known::NotYet)).unzip();
        let to_engines: Arc<[_]> = to_engines.into();
        let worker = |waiting: &async_channel::Receiver<Asked>| {
            let (waiting, long) = (waiting.clone(), long.clone());
            Worker { store: store.clone(), waiting, long, to_engines: to_engines.clone() }
        };
        for _ in 0..WORKERS {
            tasks.spawn("keeper", worker(&waiting).run(shutdown.clone()));
        }
        for _ in 0..LONG_WORKERS {
            tasks.spawn("keeper of long histories", worker(&long_waiting).run_long(shutdown.clone()));
        }
        let lacking = async_channel::bounded(partitions.max(1) as usize);
        let names = NamesReader { store: store.clone(), lacking: lacking.clone(), to_engines };
        tasks.spawn("keeper of names", names.run(shutdown.clone()));
        tasks
            .spawn("checkpoints", watermarks::follow((store, settings), reader.clone(), tell, wrong, shutdown.clone()));
        let shelves = brought.into_iter().zip(known).map(|(brought, known)| Shelf { brought, known }).collect();
        Ok((Self { asked, lacking: lacking.0 }, shelves))
    }

    pub(crate) fn ask(&self, partition: u32, wanted: Wanted) -> Result<(), Unavailable> {
        self.asked.try_send(Asked { partition, wanted }).map_err(|_| Unavailable)
    }

    /// Asks for names, of which some come in time. There is room for an ask of each partition.
    pub(crate) fn ask_names(&self, partition: u32, from: i64) {
        // At the end of the process nobody reads them.
        let _ = self.lacking.try_send((partition, from));
    }
}

struct Worker {
    store: Arc<Store>,
    waiting: async_channel::Receiver<Asked>,
    long: async_channel::Sender<Asked>,
    to_engines: Arc<[mpsc::UnboundedSender<Brought>]>,
}

/// Where the answer to one question stands.
enum Bringing {
    Done(Kept),
    /// A long history has to be read for it.
    Long,
    /// A part of it is not there.
    Failed,
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
            let brought = self.bring(&batch).await;
            if let Err(error) = &brought {
                cannot_be_read(error, batch.len());
            }
            let mut brought = brought.unwrap_or_default().into_iter();
            for asked in batch {
                match brought.next().unwrap_or(Bringing::Failed) {
                    Bringing::Done(kept) => self.tell(asked, Ok(kept)),
                    Bringing::Failed => self.tell(asked, Err(Unavailable)),
                    Bringing::Long => {
                        if let Err(refused) = self.long.try_send(asked) {
                            self.tell(refused.into_inner(), Err(Unavailable));
                        }
                    }
                }
            }
        }
    }

    /// One by one.
    async fn run_long(self, shutdown: Shutdown) {
        loop {
            let asked = tokio::select! {
                asked = self.waiting.recv() => asked,
                () = shutdown.requested() => return,
            };
            let Ok(asked) = asked else { return };
            let kept = tokio::select! {
                kept = self.bring_long(&asked) => kept,
                () = shutdown.requested() => return,
            };
            if let Err(error) = &kept {
                cannot_be_read(error, 1);
            }
            self.tell(asked, kept.ok().flatten().ok_or(Unavailable));
        }
    }

    fn tell(&self, Asked { partition, wanted }: Asked, kept: Result<Kept, Unavailable>) {
        // An engine that ended wants nothing.
        let _ = self.to_engines[partition as usize].send(Brought::Kept(wanted, kept));
    }

    /// In the order of the batch. Where keys cannot be read, those fail that want one.
    async fn bring(&self, batch: &[Asked]) -> anyhow::Result<Vec<Bringing>> {
        let (states, repeats) = tokio::join!(self.states(batch), self.repeats(batch));
        let (states, repeats) = (
            states?,
            repeats.unwrap_or_else(|error| {
                cannot_be_read(&error.into(), batch.iter().filter(|asked| asked.wanted.key.is_some()).count());
                batch.iter().map(|_| None).collect()
            }),
        );
        let bring = |(asked, (state, repeat)): (&Asked, _)| {
            let state = match state {
                Some(Found::Long) => return Bringing::Long,
                Some(Found::State(state)) => Some(state),
                None => None,
            };
            asked.kept(state, repeat).map_or(Bringing::Failed, Bringing::Done)
        };
        Ok(batch.iter().zip(states.into_iter().zip(repeats)).map(bring).collect())
    }

    /// The key is looked up last: the answer is as of the older of its two checkpoints, and a long history takes a while.
    async fn bring_long(&self, asked: &Asked) -> anyhow::Result<Option<Kept>> {
        let state = self.store.history(&asked.wanted.aggregate, asked.partition).await?;
        let repeat = self.repeats(std::slice::from_ref(asked)).await?.pop().flatten();
        Ok(asked.kept(state, repeat))
    }

    async fn states(&self, batch: &[Asked]) -> Result<Vec<Option<Found>>, StoreError> {
        let wanted = batch.iter().map(|asked| asked.wanted.state.then_some((&asked.wanted.aggregate, asked.partition)));
        self.store.states(wanted.collect()).await
    }

    async fn repeats(&self, batch: &[Asked]) -> Result<Vec<Option<AsOf<Option<Repeat>>>>, StoreError> {
        let wanted = batch.iter().map(|Asked { partition, wanted }| {
            let key = wanted.key.as_ref()?;
            Some((&wanted.aggregate, key, *partition))
        });
        self.store.repeats(wanted.collect()).await
    }
}

impl Asked {
    /// Puts the answer together; `None` where a part of it is missing.
    fn kept(&self, state: Option<AsOf<KeptState>>, repeat: Option<AsOf<Option<Repeat>>>) -> Option<Kept> {
        if self.wanted.state != state.is_some() || self.wanted.key.is_some() != repeat.is_some() {
            return None;
        }
        let checkpoints = state.iter().map(|(checkpoint, _)| *checkpoint);
        let checkpoint = checkpoints.chain(repeat.iter().map(|(checkpoint, _)| *checkpoint)).min()?;
        let repeat = repeat.and_then(|(_, repeat)| repeat);
        Some(Kept { checkpoint, state: state.map(|(_, state)| state), repeat })
    }
}

fn cannot_be_read(error: &anyhow::Error, count: usize) {
    tracing::warn!(error = format!("{error:#}"), count, "what is kept of aggregates cannot be read");
}
