//! Reads stretches of the log, each from one partition, on plain threads.
//!
//! Invariant: a read that nobody waits for any more ends by itself; one that Kafka does not answer goes on until
//! it does.

use std::ops::Range;
use std::time::Duration;

use anyhow::Context as _;
use chassis::kafka::KafkaSettings;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use crate::partition::ReadTo;

/// Reads that may wait for a thread.
const MAX_WAITING_READS: usize = 4096;
/// Batches that may wait for whoever reads.
const MAX_WAITING_BATCHES: usize = 4;
const MAX_BATCH_BYTES: usize = 256 * 1024;
const POLL: Duration = Duration::from_millis(50);
const WATERMARKS_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) enum ReadEvent {
    Records(Records),
    /// Everything that was asked for came before this.
    Ended,
    /// The log does not hold what was asked for.
    Failed(KafkaError),
}

/// Records of one partition, in one piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    index: Vec<(i64, Range<usize>)>,
}

impl Records {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &[u8])> {
        self.index.iter().map(|(offset, range)| (*offset, &self.bytes[range.clone()]))
    }

    fn push(&mut self, message: &BorrowedMessage<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(message.payload().unwrap_or_default());
        self.index.push((message.offset(), start..self.bytes.len()));
    }
}

/// A handle to the reading threads; they end when the last handle is dropped. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogReader {
    reads: async_channel::Sender<Read>,
}

struct Read {
    partition: i32,
    from: i64,
    to: ReadTo,
    events: mpsc::Sender<ReadEvent>,
}

impl LogReader {
    pub(crate) fn start(settings: &KafkaSettings, topic: &str, threads: usize) -> anyhow::Result<Self> {
        let (reads, waiting) = async_channel::bounded(MAX_WAITING_READS);
        for _ in 0..threads {
            let consumer = settings.reader("command-api").create().context("create a Kafka consumer")?;
            let worker = Worker { consumer, topic: topic.to_owned(), waiting: waiting.clone() };
            std::thread::Builder::new().name("log-reader".into()).spawn(move || worker.run())?;
        }
        Ok(Self { reads })
    }

    /// Begins a read; dropping the receiver ends it.
    pub(crate) fn read(&self, partition: u32, from: i64, to: ReadTo) -> mpsc::Receiver<ReadEvent> {
        let (events, receiver) = mpsc::channel(MAX_WAITING_BATCHES);
        let read = Read { partition: partition.cast_signed(), from, to, events };
        if self.reads.try_send(read).is_err() {
            tracing::error!(kafka.partition = partition, "too many reads of the log wait");
        }
        receiver
    }

    /// The value at one offset; `None` where there is none, or no answer.
    pub(crate) async fn record(&self, partition: u32, offset: i64) -> Option<Vec<u8>> {
        let mut events = self.read(partition, offset, ReadTo::Offset(offset + 1));
        while let Some(ReadEvent::Records(records)) = events.recv().await {
            if let Some((_, value)) = records.iter().find(|(found, _)| *found == offset) {
                return Some(value.to_vec());
            }
        }
        None
    }

    /// Returns the values at the partition's end with their offsets, at most `count`; none without an answer.
    pub(crate) async fn last_records(&self, partition: u32, count: u32) -> Vec<(i64, Vec<u8>)> {
        let mut events = self.read(partition, -i64::from(count), ReadTo::End);
        let mut last = Vec::new();
        while let Some(ReadEvent::Records(records)) = events.recv().await {
            last.extend(records.iter().map(|(offset, value)| (offset, value.to_vec())));
        }
        last
    }
}

struct Worker {
    consumer: BaseConsumer,
    topic: String,
    waiting: async_channel::Receiver<Read>,
}

impl Worker {
    fn run(self) {
        while let Ok(read) = self.waiting.recv_blocking() {
            let outcome = match self.read(&read) {
                Ok(()) => ReadEvent::Ended,
                Err(error) => ReadEvent::Failed(error),
            };
            // Whoever asked may be gone.
            let _ = read.events.blocking_send(outcome);
            if let Err(error) = self.consumer.unassign() {
                tracing::warn!(error = %error, "could not let go of a partition");
            }
        }
    }

    fn read(&self, read: &Read) -> Result<(), KafkaError> {
        let Some((from, end)) = self.bounds(read) else { return Ok(()) };
        if from >= end {
            return Ok(());
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, read.partition, Offset::Offset(from))?;
        self.consumer.assign(&assignment)?;
        let (mut next, mut batch) = (from, Records::default());
        while next < end && !read.events.is_closed() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    next = message.offset() + 1;
                    batch.push(&message);
                }
                Some(Err(error)) if is_final(&error) => return Err(error),
                Some(Err(error)) => tracing::warn!(kafka.partition = read.partition, error = %error, "reading on"),
                None => {}
            }
            if batch.bytes.len() >= MAX_BATCH_BYTES || next >= end {
                // A closed channel ends the loop.
                let _ = read.events.blocking_send(ReadEvent::Records(std::mem::take(&mut batch)));
            }
        }
        Ok(())
    }

    /// From the first offset to read to the one behind the last. `None`: nobody waits any more.
    fn bounds(&self, read: &Read) -> Option<(i64, i64)> {
        match read.to {
            ReadTo::Offset(end) => Some((read.from, end)),
            ReadTo::End => {
                while !read.events.is_closed() {
                    match self.consumer.fetch_watermarks(&self.topic, read.partition, WATERMARKS_WITHIN) {
                        Ok((_, end)) => {
                            return Some((if read.from < 0 { (end + read.from).max(0) } else { read.from }, end));
                        }
                        Err(error) => {
                            tracing::warn!(kafka.partition = read.partition, error = %error, "the log's end is not known yet");
                            std::thread::sleep(POLL);
                        }
                    }
                }
                None
            }
        }
    }
}

/// Errors that waiting does not mend. librdkafka retries all others by itself.
fn is_final(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::UnknownPartition
        )
    )
}
