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
mod checkpoints;

use std::sync::Arc;

use chassis::env::Secret;
use chassis::shutdown::{Shutdown, Tasks};
use schemas::settings::Settings;
use tokio::sync::{mpsc, watch};

use crate::kafka::reader::LogReader;
use crate::partition::{LoadRequest, LoadedAggregate, LoadedNames, LoadedState, Repeat, Unavailable};
pub(crate) use checkpoints::JournalProgress;
use names::{NamesReader, NamesRequest};
use postgres::{AsOf, Found, Store, StoreError};

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
pub(crate) struct StateLoader {
    asked: async_channel::Sender<QueuedLoad>,
    lacking: async_channel::Sender<NamesRequest>,
}

struct QueuedLoad {
    partition: u32,
    wanted: LoadRequest,
}

#[derive(Debug)]
pub(crate) enum Loaded {
    /// The answer to [`StateLoader::ask`].
    LoadedAggregate(LoadRequest, Result<LoadedAggregate, Unavailable>),
    /// The answer to [`StateLoader::ask_names`].
    Names(LoadedNames),
}

/// One partition's end.
pub(crate) struct LoaderInbox {
    /// Bounded by what may be asked.
    pub(crate) brought: mpsc::UnboundedReceiver<Loaded>,
    /// Changes at least every [`checkpoints::EVERY`], if only to the same.
    pub(crate) known: watch::Receiver<JournalProgress>,
}

impl StateLoader {
    /// Its tasks end with `shutdown`. `wrong` is told when the tables turn out to be of another log, or of services that
    /// were told otherwise than `settings`.
    pub(crate) fn start(
        (url, settings): (&Secret, Settings),
        partitions: u32,
        reader: &LogReader,
        tasks: &mut Tasks,
        wrong: watch::Sender<Option<String>>,
        shutdown: &Shutdown,
    ) -> anyhow::Result<(Self, Vec<LoaderInbox>)> {
        let store = Arc::new(Store::connect(url, WORKERS + LONG_WORKERS + 2)?);
        let (asked, waiting) = async_channel::bounded(MAX_ASKED);
        let (long, long_waiting) = async_channel::bounded(MAX_LONG);
        let (to_engines, brought): (Vec<_>, Vec<_>) = (0..partitions).map(|_| mpsc::unbounded_channel()).unzip();
        let (tell, known): (Vec<_>, Vec<_>) = (0..partitions).map(|_| watch::channel(JournalProgress::NotYet)).unzip();
        let to_engines: Arc<[_]> = to_engines.into();
        let worker = |waiting: &async_channel::Receiver<QueuedLoad>| {
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
        tasks.spawn(
            "checkpoints",
            checkpoints::follow((store, settings), reader.clone(), tell, wrong, shutdown.clone()),
        );
        let inboxes = brought.into_iter().zip(known).map(|(brought, known)| LoaderInbox { brought, known }).collect();
        Ok((Self { asked, lacking: lacking.0 }, inboxes))
    }

    pub(crate) fn ask(&self, partition: u32, wanted: LoadRequest) -> Result<(), Unavailable> {
        self.asked.try_send(QueuedLoad { partition, wanted }).map_err(|_| Unavailable)
    }

    /// Asks for names, of which some come in time. There is room for an ask of each partition.
    pub(crate) fn ask_names(&self, partition: u32, from: i64) {
        // At the end of the process nobody reads them.
        let _ = self.lacking.try_send((partition, from));
    }
}

struct Worker {
    store: Arc<Store>,
    waiting: async_channel::Receiver<QueuedLoad>,
    long: async_channel::Sender<QueuedLoad>,
    to_engines: Arc<[mpsc::UnboundedSender<Loaded>]>,
}

/// Where the answer to one question stands.
enum LoadOutcome {
    Done(LoadedAggregate),
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
                match brought.next().unwrap_or(LoadOutcome::Failed) {
                    LoadOutcome::Done(kept) => self.tell(asked, Ok(kept)),
                    LoadOutcome::Failed => self.tell(asked, Err(Unavailable)),
                    LoadOutcome::Long => {
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

    fn tell(&self, QueuedLoad { partition, wanted }: QueuedLoad, kept: Result<LoadedAggregate, Unavailable>) {
        // An engine that ended wants nothing.
        let _ = self.to_engines[partition as usize].send(Loaded::LoadedAggregate(wanted, kept));
    }

    /// In the order of the batch. Where keys cannot be read, those fail that want one.
    async fn bring(&self, batch: &[QueuedLoad]) -> anyhow::Result<Vec<LoadOutcome>> {
        let (states, repeats) = tokio::join!(self.states(batch), self.repeats(batch));
        let (states, repeats) = (
            states?,
            repeats.unwrap_or_else(|error| {
                cannot_be_read(&error.into(), batch.iter().filter(|asked| asked.wanted.key.is_some()).count());
                batch.iter().map(|_| None).collect()
            }),
        );
        let bring = |(asked, (state, repeat)): (&QueuedLoad, _)| {
            let state = match state {
                Some(Found::Long) => return LoadOutcome::Long,
                Some(Found::State(state)) => Some(state),
                None => None,
            };
            asked.kept(state, repeat).map_or(LoadOutcome::Failed, LoadOutcome::Done)
        };
        Ok(batch.iter().zip(states.into_iter().zip(repeats)).map(bring).collect())
    }

    /// The key is looked up last: the answer is as of the older of its two checkpoints, and a long history takes a while.
    async fn bring_long(&self, asked: &QueuedLoad) -> anyhow::Result<Option<LoadedAggregate>> {
        let state = self.store.history(&asked.wanted.aggregate, asked.partition).await?;
        let repeat = self.repeats(std::slice::from_ref(asked)).await?.pop().flatten();
        Ok(asked.kept(state, repeat))
    }

    async fn states(&self, batch: &[QueuedLoad]) -> Result<Vec<Option<Found>>, StoreError> {
        let wanted = batch.iter().map(|asked| asked.wanted.state.then_some((&asked.wanted.aggregate, asked.partition)));
        self.store.states(wanted.collect()).await
    }

    async fn repeats(&self, batch: &[QueuedLoad]) -> Result<Vec<Option<AsOf<Option<Repeat>>>>, StoreError> {
        let wanted = batch.iter().map(|QueuedLoad { partition, wanted }| {
            let key = wanted.key.as_ref()?;
            Some((&wanted.aggregate, key, *partition))
        });
        self.store.repeats(wanted.collect()).await
    }
}

impl QueuedLoad {
    /// Puts the answer together; `None` where a part of it is missing.
    fn kept(&self, state: Option<AsOf<LoadedState>>, repeat: Option<AsOf<Option<Repeat>>>) -> Option<LoadedAggregate> {
        if self.wanted.state != state.is_some() || self.wanted.key.is_some() != repeat.is_some() {
            return None;
        }
        let checkpoints = state.iter().map(|(checkpoint, _)| *checkpoint);
        let checkpoint = checkpoints.chain(repeat.iter().map(|(checkpoint, _)| *checkpoint)).min()?;
        let repeat = repeat.and_then(|(_, repeat)| repeat);
        Some(LoadedAggregate { checkpoint, state: state.map(|(_, state)| state), repeat })
    }
}

fn cannot_be_read(error: &anyhow::Error, count: usize) {
    tracing::warn!(error = format!("{error:#}"), count, "what is kept of aggregates cannot be read");
}
