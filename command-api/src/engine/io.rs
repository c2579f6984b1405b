//! Effects of a partition's state machine: Kafka, loads from Postgres and metrics.

use std::sync::Arc;

use schemas::answers::Answer;
use schemas::chain::Passed;
use schemas::exceptions::Unreadable;
use schemas::record::Record;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::exceptions::ExceptionLog;
use crate::kafka::producer::Producers;
use crate::kafka::reader::{LogReader, ReadEvent};
use crate::loader::StateLoader;
use crate::metrics::{Appended, Metrics};
use crate::partition::{DoubtCause, Effects, LoadRequest, QueueFull, ReadTo, Ticket, Unavailable};
use crate::request::Reply;

/// Maximum number of postponed loads of one partition.
const MAX_LATER: usize = 16_384;

pub(crate) struct PartitionIo {
    pub(crate) partition: u32,
    pub(crate) producers: Arc<Producers>,
    pub(crate) reader: LogReader,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) reading: Option<mpsc::Receiver<ReadEvent>>,
    /// End of the current read.
    pub(crate) reads_to: ReadTo,
    pub(crate) exceptions: ExceptionLog,
    /// Loads states that are not in memory. `None` if all are.
    pub(crate) loader: Option<StateLoader>,
    /// Loads to repeat once Postgres has caught up.
    pub(crate) wanted_later: Vec<LoadRequest>,
    /// The record in flight whose latency is measured; one at a time.
    pub(crate) timed: Option<(Ticket, Appended, Instant)>,
}

impl PartitionIo {
    pub(super) fn reported(&mut self, ticket: Ticket) {
        if let Some((_, what, since)) = self.timed.take_if(|(timed, ..)| *timed == ticket) {
            self.metrics.appended(what, since.elapsed());
        }
    }
}

impl Effects for PartitionIo {
    type Reply = Reply;

    fn append(&mut self, key: &str, value: &[u8], ticket: Ticket) -> Result<(), QueueFull> {
        self.producers.append(self.partition, key, value, ticket)?;
        if self.timed.is_none_or(|(timed, ..)| timed.generation != ticket.generation) {
            let what = if key.is_empty() { Appended::Fence } else { Appended::Commit };
            self.timed = Some((ticket, what, Instant::now()));
        }
        Ok(())
    }

    fn read(&mut self, from: i64, to: ReadTo) {
        self.reads_to = to;
        self.reading = Some(self.reader.read(self.partition, from, to));
    }

    fn decode<'a>(&self, offset: i64, value: &'a [u8]) -> Result<Option<Record<'a>>, Unreadable> {
        self.exceptions.known.decode((self.partition, offset), value)
    }

    fn load(&mut self, wanted: LoadRequest) -> Result<(), Unavailable> {
        self.loader.as_ref().ok_or(Unavailable)?.ask(self.partition, wanted)
    }

    fn load_later(&mut self, wanted: LoadRequest) -> Result<(), Unavailable> {
        if self.wanted_later.len() >= MAX_LATER {
            return Err(Unavailable);
        }
        self.wanted_later.push(wanted);
        Ok(())
    }

    fn load_names(&mut self, from: i64) {
        if let Some(loader) = &self.loader {
            loader.ask_names(self.partition, from);
        }
    }

    fn answer(&mut self, reply: Reply, answer: Answer) {
        reply.send(answer);
    }

    fn nonce(&mut self) -> u64 {
        rand::random()
    }

    fn doubted(&mut self, cause: DoubtCause) {
        tracing::warn!(kafka.partition = self.partition, cause = ?cause, "unclear which records count; reading the log");
        self.metrics.doubted(self.partition, cause);
    }

    fn passed_over(&mut self, reason: Passed) {
        self.metrics.passed_over(self.partition, reason);
    }

    fn shares_url(&mut self) {
        tracing::error!(
            kafka.partition = self.partition,
            "another instance claims with this one's INTERNAL_URL: give each instance a URL that reaches it alone"
        );
    }
}
