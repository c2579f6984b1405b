//! Writes the records of an archive to empty topics, each at its own offset.
//!
//! Kafka gives the records of a partition successive offsets from 0 on, and takes none for itself where no writer uses
//! transactions. So each record gets its offset again if the topic is new, and if all are written in order. Every
//! acknowledgement is compared: a difference ends the restore.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chassis::exit::Misuse;
use chassis::kafka::KafkaSettings;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::folder::{Folder, Frames, Stream};
use super::frame::Frame;
use super::meter::{Amount, Meter};
use super::topic_reader::{ANSWERS_WITHIN, TopicReader};

const POLL: Duration = Duration::from_millis(100);
/// Number of records after which acknowledgements are looked at.
const POLL_EVERY: i64 = 256;

/// Outcome of a restore.
#[derive(Debug)]
pub struct Restored {
    /// ID of the log.
    pub log: String,
    pub partitions: u32,
    /// Records that the topics had already, by an earlier run. All of them are those of the archive.
    pub found: Amount,
    pub written: Amount,
    pub(super) summary: String,
}

/// Writes what the topics lack. Blocks.
///
/// # Errors
/// The archive is damaged, or a topic has a record that the archive has not at that offset. Until then every record that
/// was written is at its offset, and the restore may be repeated.
pub(super) fn restore(
    kafka: &KafkaSettings,
    topic: &str,
    folder: &Folder,
    tell: &dyn Fn(String),
) -> anyhow::Result<Restored> {
    let (reader, progress, manifest) = (TopicReader::new(kafka)?, folder.progress()?, &folder.manifest);
    let mut total = 0;
    for stream in manifest.streams() {
        let (next, _) = folder.end(stream)?;
        folder.check_end(&progress, stream, next)?;
        total += next.cast_unsigned();
    }
    let sender = Sender::new(kafka)?;
    let (mut compared, mut written) = (Meter::new(total, tell), Meter::new(total, tell));
    for stream in manifest.streams() {
        let (topic, mut frames) = (stream.topic(topic), folder.frames(stream)?);
        compare(&reader, &topic, stream, &mut frames, &mut compared)?;
        while frames.read()? {
            sender.send(&topic, stream.partition, &Frame::parse(frames.frame())?)?;
            written.add(frames.frame().len());
        }
        sender.finish().with_context(|| format!("restore {}", stream.name()))?;
    }
    let summary = match compared.amount().records {
        0 => written.to_string(),
        found => format!("{found} records were there and are those of the archive; {written}"),
    };
    let (log, partitions) = (manifest.log.clone(), manifest.partitions);
    Ok(Restored { log, partitions, found: compared.amount(), written: written.amount(), summary })
}

/// Compares the records that a partition has with those of the archive.
fn compare(
    reader: &TopicReader,
    topic: &str,
    stream: Stream,
    frames: &mut Frames,
    compared: &mut Meter<'_>,
) -> anyhow::Result<()> {
    let (low, high) = reader.bounds(topic, stream.partition)?;
    let other = |offset: i64| {
        let partition = stream.partition;
        Misuse::new(format!(
            "partition {partition} of {topic:?} has another record at offset {offset} than the archive: restore to an \
             empty topic, before any service uses it"
        ))
    };
    if low > 0 {
        return Err(other(0).into());
    }
    let mut frame = Vec::new();
    reader.read((topic, stream.partition), 0..high, &|| false, |message| {
        Frame::of(message).encode(&mut frame);
        if !frames.read()? || frames.frame() != frame {
            return Err(other(message.offset()).into());
        }
        compared.add(frame.len());
        Ok(())
    })
}

/// A producer of which each record must get the offset that it states.
struct Sender {
    producer: BaseProducer<Offsets>,
    offsets: Arc<Seen>,
    sent: AtomicU64,
}

#[derive(Default)]
struct Seen {
    acknowledged: AtomicU64,
    /// First difference or failure.
    failure: Mutex<Option<String>>,
}

struct Offsets(Arc<Seen>);

impl ClientContext for Offsets {}

impl ProducerContext for Offsets {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, wanted: usize) {
        let failure = match result {
            Ok(message) if usize::try_from(message.offset()) == Ok(wanted) => {
                self.0.acknowledged.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(message) => {
                let (partition, is) = (message.partition(), message.offset());
                format!(
                    "the record of offset {wanted} of partition {partition} got offset {is}: another writer is there"
                )
            }
            Err((error, message)) => {
                format!("the record of offset {wanted} of partition {} is in doubt: {error}", message.partition())
            }
        };
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }
}

impl Sender {
    fn new(kafka: &KafkaSettings) -> anyhow::Result<Self> {
        let offsets = Arc::<Seen>::default();
        let producer = kafka.producer("command-api restore").create_with_context(Offsets(offsets.clone()));
        let producer = producer.context("create a Kafka producer")?;
        Ok(Self { producer, offsets, sent: AtomicU64::new(0) })
    }

    fn send(&self, topic: &str, partition: i32, frame: &Frame<'_>) -> anyhow::Result<()> {
        let opaque = usize::try_from(frame.offset).context("an offset below 0")?;
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, opaque).partition(partition);
        (record.key, record.payload, record.timestamp) = (frame.key, frame.value, frame.timestamp_ms);
        if !frame.headers.is_empty() {
            let header =
                |headers: OwnedHeaders, (key, value): &(&str, _)| headers.insert(Header { key, value: *value });
            record.headers = Some(frame.headers.iter().fold(OwnedHeaders::new(), header));
        }
        let begun = Instant::now();
        while let Err((error, unsent)) = self.producer.send(record) {
            if !matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                return Err(error).with_context(|| format!("write the record of offset {}", frame.offset));
            }
            ensure!(begun.elapsed() < ANSWERS_WITHIN, "Kafka acknowledges no records");
            self.producer.poll(POLL);
            self.check()?;
            record = unsent;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        if frame.offset % POLL_EVERY == 0 {
            self.producer.poll(Duration::ZERO);
            self.check()?;
        }
        Ok(())
    }

    /// Waits until all records are acknowledged.
    fn finish(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.producer.in_flight_count() > 0 && begun.elapsed() < ANSWERS_WITHIN {
            self.producer.poll(POLL);
            self.check()?;
        }
        self.check()?;
        let missing = self.sent.load(Ordering::Relaxed) - self.offsets.acknowledged.load(Ordering::Relaxed);
        ensure!(missing == 0, "Kafka does not acknowledge {missing} records; run it again");
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        match self.offsets.failure.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(failure) => bail!("{failure}; run it again"),
            None => Ok(()),
        }
    }
}
