//! Loads aggregate states, idempotency keys, aggregate names and checkpoints that the projector stored in Postgres.
//!
//! The projector writes them; here they are only read, many at a time, and never on an engine's task. The one exception
//! is the settings that all services share, which the first service to start writes.
//!
//! Invariant: every result comes with the checkpoint of the same moment, from one statement, so that its reader can
//! tell which events it includes.

mod names;
mod postgres;
mod checkpoints;

use std::sync::Arc;

use chassis::postgres::PostgresSettings;
use chassis::shutdown::{Shutdown, Tasks};
use schemas::settings::Settings;
use tokio::sync::{mpsc, watch};

use crate::kafka::reader::LogReader;
use crate::partition::{LoadRequest, LoadedAggregate, LoadedNames, LoadedState, Repeat, Unavailable};
pub(crate) use checkpoints::JournalProgress;
use names::{NamesReader, NamesRequest};
use postgres::{AsOf, Found, Store, StoreError};

/// Maximum number of queued requests of all partitions.
const MAX_ASKED: usize = 16_384;
/// Maximum number of requests in one statement.
const MAX_BATCH: usize = 256;
/// Maximum number of statements in flight.
const WORKERS: usize = 4;
/// Number of additional workers that read long histories, so that short requests do not wait for these.
const LONG_WORKERS: usize = 2;
/// Maximum number of queued long histories. Further ones are answered as unavailable.
const MAX_LONG: usize = 256;

/// A handle to the tasks that read from Postgres. Cheap to clone.
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

/// The receiving end of one partition.
pub(crate) struct LoaderInbox {
    /// Results of requests. Bounded by the number of requests.
    pub(crate) brought: mpsc::UnboundedReceiver<Loaded>,
    /// Progress of the journal. Sent at least every [`checkpoints::EVERY`], even if unchanged.
    pub(crate) known: watch::Receiver<JournalProgress>,
}

impl StateLoader {
    /// Starts the tasks, which end with `shutdown`. `wrong` receives a message if the tables belong to another log, or
    /// to services configured otherwise than `settings`.
    pub(crate) fn start(
        postgres: &PostgresSettings,
        settings: Settings,
        partitions: u32,
        reader: &LogReader,
        tasks: &mut Tasks,
        wrong: watch::Sender<Option<String>>,
        shutdown: &Shutdown,
    ) -> anyhow::Result<(Self, Vec<LoaderInbox>)> {
        let store = Arc::new(Store::connect(postgres, WORKERS + LONG_WORKERS + 2)?);
        let (asked, waiting) = async_channel::bounded(MAX_ASKED);
        let (long, long_waiting) = async_channel::bounded(MAX_LONG);
        // Bounded by an engine's open requests: `awaiting_load` limits those of commands, `tails` those of a replay, and
        // one page of names is requested at a time.
        let (to_engines, brought): (Vec<_>, Vec<_>) = (0..partitions).map(|_| mpsc::unbounded_channel()).unzip();
        let (tell, known): (Vec<_>, Vec<_>) = (0..partitions).map(|_| watch::channel(JournalProgress::NotYet)).unzip();
        let to_engines: Arc<[_]> = to_engines.into();
        let worker = |waiting: &async_channel::Receiver<QueuedLoad>| {
            let (waiting, long) = (waiting.clone(), long.clone());
            Worker { store: store.clone(), waiting, long, to_engines: to_engines.clone() }
        };
        for _ in 0..WORKERS {
            tasks.spawn("state loader", worker(&waiting).run(shutdown.clone()));
        }
        for _ in 0..LONG_WORKERS {
            tasks.spawn("long history loader", worker(&long_waiting).run_long(shutdown.clone()));
        }
        let lacking = async_channel::bounded(partitions.max(1) as usize);
        let names = NamesReader { store: store.clone(), lacking: lacking.clone(), to_engines };
        tasks.spawn("name loader", names.run(shutdown.clone()));
        tasks.spawn("checkpoints", checkpoints::follow(store, settings, reader.clone(), tell, wrong, shutdown.clone()));
        let inboxes = brought.into_iter().zip(known).map(|(brought, known)| LoaderInbox { brought, known }).collect();
        Ok((Self { asked, lacking: lacking.0 }, inboxes))
    }

    pub(crate) fn ask(&self, partition: u32, wanted: LoadRequest) -> Result<(), Unavailable> {
        self.asked.try_send(QueuedLoad { partition, wanted }).map_err(|_| Unavailable)
    }

    /// Requests a partition's names from an offset on; the next page of them arrives later. The queue has room for one
    /// request of each partition.
    pub(crate) fn ask_names(&self, partition: u32, from: i64) {
        // At shutdown the reader of names may be gone.
        let _ = self.lacking.try_send((partition, from));
    }
}

struct Worker {
    store: Arc<Store>,
    waiting: async_channel::Receiver<QueuedLoad>,
    long: async_channel::Sender<QueuedLoad>,
    to_engines: Arc<[mpsc::UnboundedSender<Loaded>]>,
}

/// State of one request after its batch was read.
enum LoadOutcome {
    Done(LoadedAggregate),
    /// The request requires a long history.
    Long,
    /// A part of the result is missing.
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

    /// Serves requests for long histories, one by one.
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
        // An engine that has ended needs no result.
        let _ = self.to_engines[partition as usize].send(Loaded::LoadedAggregate(wanted, kept));
    }

    /// Reads a batch and returns its results in order. If keys cannot be read, only the requests with a key fail.
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

    /// Reads a long history. The key is looked up last, because the result is as of the older of its two checkpoints
    /// and a long history takes a while.
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
    /// Assembles the result; `None` if a part of it is missing.
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
    tracing::warn!(error = format!("{error:#}"), count, "loading aggregate states failed");
}
