//! Reads the log, all partitions in one, on a thread of its own.
//!
//! Invariant: records leave in offset order within a partition, none twice, none left out. Memory is bounded: one
//! batch being filled, one waiting, one being folded.

use std::ops::Range;
use std::time::Duration;

use anyhow::Context as _;
use chassis::kafka::KafkaSettings;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

/// A batch grows to this while the one before it is folded; an idle log's batches are single records.
const MAX_BATCH_RECORDS: usize = 4_000;
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
const IDLE_POLL: Duration = Duration::from_millis(100);
const FULL_PAUSE: Duration = Duration::from_micros(500);

/// Records of several partitions, in one piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    index: Vec<(u32, i64, Range<usize>)>,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// As (partition, offset, value).
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, i64, &[u8])> {
        self.index.iter().map(|(partition, offset, range)| (*partition, *offset, &self.bytes[range.clone()]))
    }

    /// Leaves what is below `until` of its partition, and gives the rest, if there is any.
    pub(crate) fn split_off(&mut self, until: &[i64]) -> Option<Self> {
        let is_below = |(partition, offset, _): &(u32, i64, Range<usize>)| *offset < until[*partition as usize];
        let (below, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.index).into_iter().partition(is_below);
        self.index = below;
        (!rest.is_empty()).then(|| Self { bytes: self.bytes.clone(), index: rest })
    }

    fn push(&mut self, message: &BorrowedMessage<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(message.payload().unwrap_or_default());
        self.index.push((message.partition().cast_unsigned(), message.offset(), start..self.bytes.len()));
    }

    /// Of records that no client fetched.
    pub(crate) fn of<'a>(records: impl IntoIterator<Item = (u32, i64, &'a [u8])>) -> Self {
        let mut batch = Self::default();
        for (partition, offset, value) in records {
            let start = batch.bytes.len();
            batch.bytes.extend_from_slice(value);
            batch.index.push((partition, offset, start..batch.bytes.len()));
        }
        batch
    }

    fn is_full(&self) -> bool {
        self.index.len() >= MAX_BATCH_RECORDS || self.bytes.len() >= MAX_BATCH_BYTES
    }
}

/// What the thread sends; its end is the channel's.
pub(crate) type Batches = mpsc::Receiver<Result<Batch, KafkaError>>;

/// Begins at the given offset of each partition. Dropping the receiver ends the thread.
pub(crate) fn follow(kafka: &KafkaSettings, topic: &str, from: &[(u32, i64)]) -> anyhow::Result<Batches> {
    let consumer: BaseConsumer = kafka.reader("projector").create().context("create a Kafka consumer")?;
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in from {
        assignment.add_partition_offset(topic, partition.cast_signed(), Offset::Offset(*offset))?;
    }
    consumer.assign(&assignment).context("assign the log's partitions")?;
    let (sender, batches) = mpsc::channel(1);
    std::thread::Builder::new().name("log".into()).spawn(move || read(&consumer, &sender))?;
    Ok(batches)
}

fn read(consumer: &BaseConsumer, sender: &mpsc::Sender<Result<Batch, KafkaError>>) {
    let mut batch = Batch::default();
    while !sender.is_closed() {
        let wait = if batch.index.is_empty() { IDLE_POLL } else { Duration::ZERO };
        match consumer.poll(wait) {
            Some(Ok(message)) => {
                batch.push(&message);
                if !batch.is_full() {
                    continue;
                }
            }
            Some(Err(error)) if is_final(&error) => {
                // Whoever listens may be gone.
                let _ = sender.blocking_send(Err(error));
                return;
            }
            Some(Err(error)) => tracing::debug!(error = %error, "Kafka does not answer; reading on"),
            None => {}
        }
        // The client has nothing more at hand, or the batch holds all it may.
        if !batch.index.is_empty() && !hand_over(sender, &mut batch) {
            return;
        }
    }
}

/// A batch waits for the fold only when it is full; else more records join it meanwhile. `false`: nobody listens.
fn hand_over(sender: &mpsc::Sender<Result<Batch, KafkaError>>, batch: &mut Batch) -> bool {
    if batch.is_full() {
        return sender.blocking_send(Ok(std::mem::take(batch))).is_ok();
    }
    match sender.try_reserve() {
        Ok(permit) => permit.send(Ok(std::mem::take(batch))),
        Err(mpsc::error::TrySendError::Full(())) => std::thread::sleep(FULL_PAUSE),
        Err(mpsc::error::TrySendError::Closed(())) => return false,
    }
    true
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
