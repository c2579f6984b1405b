//! Reads ranges of the log, each from one partition, on plain threads.
//!
//! A single Kafka client serves all reads and buffers each partition separately: a partition that cannot be read, or
//! whose records are not being taken, does not hold up the others.
//!
//! Invariant: a read whose receiver is gone ends by itself; one that Kafka does not answer continues until it does.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use chassis::kafka::KafkaSettings;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _, DefaultConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use crate::partition::ReadTo;

/// Maximum number of reads that wait for an earlier one of their partition.
const MAX_WAITING_READS: usize = 256;
/// Maximum number of batches that wait for the receiver of a read.
const MAX_WAITING_BATCHES: usize = 4;
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// KiB of one partition that are fetched ahead; one more fetch may come on top.
const AHEAD_KIB: &str = "2048";
const POLL: Duration = Duration::from_millis(50);
const WATERMARKS_WITHIN: Duration = Duration::from_secs(2);
/// Timeout of a read of single records; the caller retries.
const LOOKS_FOR: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) enum ReadEvent {
    Records(Records),
    /// All requested records have been sent.
    Ended,
    /// The log does not hold the requested records.
    Failed(KafkaError),
}

/// Records of one partition, in one allocation.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Kafka did not answer in time")]
pub(crate) struct NoAnswer;

/// A handle to the reader, which ends when the last handle is dropped. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogReader(Arc<Reader>);

struct Reader {
    consumer: Arc<BaseConsumer>,
    topic: String,
    /// Pending reads of each partition that is being read. Each such partition has a thread of its own.
    waiting: Mutex<HashMap<i32, VecDeque<Read>>>,
}

struct Read {
    partition: i32,
    from: i64,
    to: ReadTo,
    events: mpsc::Sender<ReadEvent>,
}

impl LogReader {
    pub(crate) fn start(settings: &KafkaSettings, topic: &str) -> anyhow::Result<Self> {
        let mut config = settings.reader("command-api");
        let consumer =
            config.set("queued.max.messages.kbytes", AHEAD_KIB).create().context("create a Kafka consumer")?;
        let consumer: Arc<BaseConsumer> = Arc::new(consumer);
        let reader = Reader { consumer: consumer.clone(), topic: topic.to_owned(), waiting: Mutex::default() };
        let reader = Arc::new(reader);
        let alive = Arc::downgrade(&reader);
        // Polls for events that concern no single partition. The thread also holds the client to the end, because
        // dropping its last reference blocks. It is not joined for the same reason, and ends with the reader.
        std::thread::Builder::new().name("log-reader".into()).spawn(move || {
            while alive.strong_count() > 0 {
                if let Some(Err(error)) = consumer.poll(POLL) {
                    tracing::warn!(error = %error, "Kafka client error; retrying");
                }
            }
        })?;
        Ok(Self(reader))
    }

    /// Starts a read; dropping the receiver ends it. Reads of one partition run one after another.
    pub(crate) fn read(&self, partition: u32, from: i64, to: ReadTo) -> mpsc::Receiver<ReadEvent> {
        let (events, receiver) = mpsc::channel(MAX_WAITING_BATCHES);
        self.0.clone().begin(Read { partition: partition.cast_signed(), from, to, events });
        receiver
    }

    /// Returns the value at an offset, or `None` if the log has none.
    pub(crate) async fn record(&self, partition: u32, offset: i64) -> Result<Option<Vec<u8>>, NoAnswer> {
        let values = self.look(partition, offset, ReadTo::Offset(offset + 1)).await?;
        Ok(values.into_iter().find_map(|(found, value)| (found == offset).then_some(value)))
    }

    /// Returns the last values of the partition, at most `count`, with their offsets.
    pub(crate) async fn last_records(&self, partition: u32, count: u32) -> Result<Vec<(i64, Vec<u8>)>, NoAnswer> {
        self.look(partition, -i64::from(count), ReadTo::End).await
    }

    /// Returns the offset of the last record, or `None` if the partition is empty.
    pub(crate) async fn last_offset(&self, partition: u32) -> Result<Option<i64>, NoAnswer> {
        Ok(self.last_records(partition, 1).await?.last().map(|(offset, _)| *offset))
    }

    /// Reads all of a short range.
    async fn look(&self, partition: u32, from: i64, to: ReadTo) -> Result<Vec<(i64, Vec<u8>)>, NoAnswer> {
        let look = async {
            let (mut events, mut found) = (self.read(partition, from, to), Vec::new());
            loop {
                match events.recv().await {
                    Some(ReadEvent::Records(records)) => {
                        found.extend(records.iter().map(|(offset, value)| (offset, value.to_vec())));
                    }
                    Some(ReadEvent::Ended) => return Ok(found),
                    Some(ReadEvent::Failed(error)) if is_out_of_range(&error) => return Ok(found),
                    Some(ReadEvent::Failed(_)) | None => return Err(NoAnswer),
                }
            }
        };
        tokio::time::timeout(LOOKS_FOR, look).await.unwrap_or(Err(NoAnswer))
    }
}

impl Reader {
    /// Runs a read on the thread of its partition, or queues it there. Starts the thread if there is none.
    fn begin(self: Arc<Self>, read: Read) {
        let partition = read.partition;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = waiting.get_mut(&partition) {
            if queue.len() < MAX_WAITING_READS {
                return queue.push_back(read);
            }
            return tracing::error!(kafka.partition = partition, "too many pending reads of the log");
        }
        // Not joined: it ends once its last read is complete or has lost its receiver.
        let reader = self.clone();
        match std::thread::Builder::new().name("log-reader".into()).spawn(move || reader.run(read)) {
            Ok(_) => _ = waiting.insert(partition, VecDeque::new()),
            Err(error) => {
                tracing::error!(kafka.partition = partition, error = %error, "could not start a thread to read the log")
            }
        }
    }

    /// Runs the reads of a partition until none is pending.
    fn run(&self, mut read: Read) {
        loop {
            let outcome = self.read(&read).map_or_else(ReadEvent::Failed, |()| ReadEvent::Ended);
            // The receiver may be gone.
            let _ = read.events.blocking_send(outcome);
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.get_mut(&read.partition).and_then(VecDeque::pop_front) {
                Some(next) => read = next,
                None => {
                    waiting.remove(&read.partition);
                    return;
                }
            }
        }
    }

    fn read(&self, read: &Read) -> Result<(), KafkaError> {
        let Some((from, end)) = self.bounds(read) else { return Ok(()) };
        if from >= end {
            return Ok(());
        }
        let queue = self.consumer.split_partition_queue(&self.topic, read.partition);
        let queue = queue.ok_or(KafkaError::MessageConsumption(RDKafkaErrorCode::UnknownPartition))?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, read.partition, Offset::Offset(from))?;
        self.consumer.incremental_assign(&assignment)?;
        let outcome = pass_on(&queue, read, from..end);
        if let Err(error) = self.consumer.incremental_unassign(&assignment) {
            tracing::warn!(kafka.partition = read.partition, error = %error, "could not unassign a partition");
        }
        outcome
    }

    /// Returns the first offset to read and the one behind the last, or `None` if the receiver is gone.
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
                            tracing::warn!(kafka.partition = read.partition, error = %error, "could not read the high watermark; retrying");
                            // The query uses the cached leader; fetching the metadata finds a new one.
                            let _ = self.consumer.fetch_metadata(Some(&self.topic), WATERMARKS_WITHIN);
                            std::thread::sleep(POLL);
                        }
                    }
                }
                None
            }
        }
    }
}

/// Passes on fetched records until the range is complete or the receiver is gone.
fn pass_on(
    queue: &PartitionQueue<DefaultConsumerContext>,
    read: &Read,
    Range { start: mut next, end }: Range<i64>,
) -> Result<(), KafkaError> {
    let mut batch = Records::default();
    while next < end && !read.events.is_closed() {
        match queue.poll(POLL) {
            Some(Ok(message)) => {
                next = message.offset() + 1;
                batch.push(&message);
            }
            Some(Err(error)) if is_final(&error) => return Err(error),
            Some(Err(error)) => tracing::warn!(kafka.partition = read.partition, error = %error, "retrying the read"),
            None => {}
        }
        if batch.bytes.len() >= MAX_BATCH_BYTES || next >= end {
            // A closed channel ends the loop.
            let _ = read.events.blocking_send(ReadEvent::Records(std::mem::take(&mut batch)));
        }
    }
    Ok(())
}

/// Returns whether retrying cannot help. librdkafka retries all other errors by itself.
fn is_final(error: &KafkaError) -> bool {
    is_out_of_range(error) || error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition)
}

/// Returns whether the log does not hold the requested offset.
fn is_out_of_range(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange))
}

#[cfg(test)]
mod tests;
