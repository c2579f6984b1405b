//! Reads all assigned partitions of the log with one consumer, on its own thread.
//!
//! Invariant: records are delivered in offset order within a partition, none twice, none left out. Memory is bounded:
//! one batch is being filled while another is being folded.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use chassis::kafka::KafkaSettings;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use schemas::exceptions::Stray;
use tokio::sync::Notify;

const IDLE_POLL: Duration = Duration::from_millis(100);
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// Time limit where reading waits for the answer; the question is asked again.
const COMPARED_WITHIN: Duration = Duration::from_millis(500);

/// Limits up to which a batch grows until it is taken. On an idle log, batches are single records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

impl BatchLimits {
    pub(crate) const MAX: Self = Self { records: 12_000, bytes: 2 * 1024 * 1024 };
}

/// A record as it is in the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawRecord<'a> {
    pub(crate) partition: u32,
    pub(crate) offset: i64,
    pub(crate) value: &'a [u8],
}

/// Records of several partitions in one allocation, parts of which can outlive the batch.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Bytes,
    index: Index,
}

/// The partition, the offset and the value's byte range of each record.
type Index = Vec<(u32, i64, Range<usize>)>;

impl Batch {
    pub(crate) fn iter(&self) -> impl Iterator<Item = RawRecord<'_>> {
        let raw = |(partition, offset, range): &(u32, i64, Range<usize>)| RawRecord {
            partition: *partition,
            offset: *offset,
            value: &self.bytes[range.clone()],
        };
        self.index.iter().map(raw)
    }

    /// Keeps the records below their partition's `until`, and returns the rest if there are any.
    pub(crate) fn split_off(&mut self, until: &[i64]) -> Option<Self> {
        let is_below = |(partition, offset, _): &(u32, i64, Range<usize>)| *offset < until[*partition as usize];
        let (below, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.index).into_iter().partition(is_below);
        self.index = below;
        (!rest.is_empty()).then(|| Self { bytes: self.bytes.clone(), index: rest })
    }

    /// Builds a batch from records that did not come from Kafka: partition, offset and value of each.
    pub(crate) fn of<'a>(records: impl IntoIterator<Item = (u32, i64, &'a [u8])>) -> Self {
        let mut filling = Filling::default();
        records.into_iter().for_each(|(partition, offset, value)| filling.push(partition, offset, value));
        filling.take()
    }

    /// Returns all values, concatenated.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// A batch that is being filled.
#[derive(Debug, Default)]
struct Filling {
    bytes: Vec<u8>,
    index: Index,
}

impl Filling {
    fn push(&mut self, partition: u32, offset: i64, value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.index.push((partition, offset, start..self.bytes.len()));
    }

    fn take(&mut self) -> Batch {
        let Self { bytes, index } = std::mem::take(self);
        Batch { bytes: bytes.into(), index }
    }

    fn is_full(&self, limits: BatchLimits) -> bool {
        self.index.len() >= limits.records || self.bytes.len() >= limits.bytes
    }
}

/// The place in a partition at which a reader halts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blame {
    pub(crate) partition: u32,
    /// First offset that is not read.
    pub(crate) from: i64,
    /// The unreadable record, if an exception can be signed for it.
    pub(crate) stray: Option<Stray>,
}

/// The log does not contain what is to be read.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LogError {
    #[error("the log does not contain the requested offset{}", place.map(|(partition, offset)| format!(": partition {partition} has no offset {offset}")).unwrap_or_default())]
    Lacking {
        /// The partition and offset, if they could be determined.
        place: Option<(u32, i64)>,
        source: KafkaError,
    },
    #[error(
        "the log lacks the last {missing} records of partition {partition} that Postgres has: it was restored without \
         them. Restore a newer copy of it, or replace the database by an empty one and run `projector recover`, which \
         loses these records"
    )]
    Shorter { partition: u32, missing: i64 },
}

impl LogError {
    pub(crate) fn blame(&self) -> Option<Blame> {
        let partition = match self {
            Self::Lacking { place, .. } => place.map(|(partition, _)| partition)?,
            Self::Shorter { partition, .. } => *partition,
        };
        Some(Blame { partition, from: 0, stray: None })
    }

    /// Returns an error if one of the partitions ends before the offset up to which it was read before.
    pub(crate) fn of_shorter(known: &[(u32, i64)], end_of: impl Fn(u32) -> Option<i64>) -> Option<Self> {
        known.iter().find_map(|(partition, next)| {
            let missing = next - end_of(*partition)?;
            (missing > 0).then_some(Self::Shorter { partition: *partition, missing })
        })
    }
}

/// The receiver of the reader's batches. A batch contains all records that were read since the one before was taken.
pub(crate) struct Batches(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Notified when the batch is no longer empty, or on an error.
    filled: Notify,
    /// Notified when the batch was taken, or on close.
    taken: Condvar,
}

struct State {
    batch: Filling,
    limits: BatchLimits,
    error: Option<LogError>,
    /// Set when the receiver was dropped.
    is_closed: bool,
}

/// Reads each partition from the given offset on. Dropping the returned receiver ends the thread.
pub(crate) fn follow(kafka: &KafkaSettings, topic: &str, from: &[(u32, i64)]) -> anyhow::Result<Batches> {
    follow_by(BatchLimits::MAX, kafka, topic, from, Vec::new())
}

/// Does the same as [`follow`], with these limits of a batch. `known` are offsets up to which partitions were read
/// before: reading fails if one of them ends earlier.
pub(crate) fn follow_by(
    limits: BatchLimits,
    kafka: &KafkaSettings,
    topic: &str,
    from: &[(u32, i64)],
    known: Vec<(u32, i64)>,
) -> anyhow::Result<Batches> {
    let mut config = kafka.reader("projector");
    // The assignment is fixed, so nothing waits for a fetch to end, and short fetches would keep an idle broker busy.
    config.set("fetch.wait.max.ms", "500");
    let consumer: BaseConsumer = config.create().context("create a Kafka consumer")?;
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in from {
        assignment.add_partition_offset(topic, partition.cast_signed(), Offset::Offset(*offset))?;
    }
    consumer.assign(&assignment).context("assign the log's partitions")?;
    let state = Mutex::new(State { batch: Filling::default(), limits, error: None, is_closed: false });
    let shared = Arc::new(Shared { state, filled: Notify::new(), taken: Condvar::new() });
    let (reader, topic, from) = (shared.clone(), topic.to_owned(), from.to_vec());
    let in_topic = topic.clone();
    let place = move |consumer: &BaseConsumer| lacking(consumer, &topic, &from);
    let mut known = Some(known).filter(|known| !known.is_empty());
    let shorter = move |consumer: &BaseConsumer| {
        let compared = known.as_ref().and_then(|known| shorter(consumer, &in_topic, known).ok());
        compared.and_then(|found| {
            known = None;
            found
        })
    };
    std::thread::Builder::new().name("log".into()).spawn(move || read(&consumer, &reader, place, shorter))?;
    Ok(Batches(shared))
}

impl Batches {
    /// Limits the number of records in a batch, from the next batch on.
    pub(crate) fn allow(&self, max_records: usize) {
        self.0.lock().limits.records = max_records;
    }

    /// Waits for the next batch. No batch follows an error. Cancel safe: no record is lost.
    pub(crate) async fn recv(&mut self) -> Result<Batch, LogError> {
        loop {
            {
                let mut state = self.0.lock();
                if !state.batch.index.is_empty() {
                    self.0.taken.notify_one();
                    return Ok(state.batch.take());
                }
                if let Some(error) = &state.error {
                    return Err(error.clone());
                }
            }
            self.0.filled.notified().await;
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.taken.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: LogError) {
        self.lock().error = Some(error);
        self.filled.notify_one();
    }

    /// Adds a record, once there is room. Returns false if the receiver was dropped.
    fn push(&self, message: &BorrowedMessage<'_>) -> bool {
        let is_full = |state: &mut State| state.batch.is_full(state.limits) && !state.is_closed;
        let state = self.taken.wait_while(self.lock(), is_full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.batch.index.is_empty() {
            self.filled.notify_one();
        }
        state.batch.push(message.partition().cast_unsigned(), message.offset(), message.payload().unwrap_or_default());
        !state.is_closed
    }
}

/// Passes records on until an error or until the receiver is dropped. `place` finds the reason of a wrong offset, and
/// `shorter` an end of the log that is before what was read of it; it is looked for while nothing arrives.
fn read(
    consumer: &BaseConsumer,
    shared: &Shared,
    place: impl Fn(&BaseConsumer) -> Option<(u32, i64)>,
    mut shorter: impl FnMut(&BaseConsumer) -> Option<LogError>,
) {
    loop {
        let goes_on = match consumer.poll(IDLE_POLL) {
            Some(Ok(message)) => shared.push(&message),
            Some(Err(error)) if is_final(&error) => {
                let lacking = || LogError::Lacking { place: place(consumer), source: error };
                shared.fail(shorter(consumer).unwrap_or_else(lacking));
                false
            }
            Some(Err(error)) => {
                tracing::debug!(error = %error, "Kafka consumer error; retrying the read");
                true
            }
            None => match shorter(consumer) {
                Some(error) => {
                    shared.fail(error);
                    false
                }
                None => !shared.lock().is_closed,
            },
        };
        if !goes_on {
            return;
        }
    }
}

/// Compares the ends of the partitions, as far as brokers answer, with the offsets up to which they were read before.
fn shorter(consumer: &BaseConsumer, topic: &str, known: &[(u32, i64)]) -> Result<Option<LogError>, KafkaError> {
    let mut asked = TopicPartitionList::new();
    for (partition, _) in known {
        asked.add_partition_offset(topic, partition.cast_signed(), Offset::End)?;
    }
    let told = consumer.offsets_for_times(asked, COMPARED_WITHIN)?;
    Ok(LogError::of_shorter(known, |partition| {
        let end = told.find_partition(topic, partition.cast_signed())?;
        end.error().ok().and_then(|()| end.offset().to_raw()).filter(|end| *end >= 0)
    }))
}

/// Returns a partition that does not contain the offset to read from, and that offset. Kafka's error names neither.
fn lacking(consumer: &BaseConsumer, topic: &str, from: &[(u32, i64)]) -> Option<(u32, i64)> {
    let read = consumer.position().ok()?;
    from.iter().find_map(|(partition, from)| {
        let place = read.find_partition(topic, partition.cast_signed()).map(|place| place.offset());
        let next = place.and_then(|offset| offset.to_raw()).filter(|next| *next >= 0).unwrap_or(*from);
        let (low, high) = consumer.fetch_watermarks(topic, partition.cast_signed(), ENDS_WITHIN).ok()?;
        (next < low || next > high).then_some((*partition, next))
    })
}

/// Returns whether an error is permanent. librdkafka retries all others by itself.
fn is_final(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::UnknownPartition
        )
    )
}
