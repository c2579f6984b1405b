//! Reads partitions of topics one after the other, with all that a record has. Blocks.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chassis::exit::Misuse;
use chassis::kafka::KafkaSettings;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};

/// Maximum time for Kafka to answer, or to return the next records.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// Maximum bytes of a fetch: only one partition is read at a time.
const FETCH_BYTES: &str = "4194304";

pub(super) struct TopicReader {
    consumer: BaseConsumer,
}

impl TopicReader {
    pub(super) fn new(kafka: &KafkaSettings) -> anyhow::Result<Self> {
        let mut config = kafka.reader("command-api archive");
        config.set("max.partition.fetch.bytes", FETCH_BYTES);
        Ok(Self { consumer: config.create().context("create a Kafka consumer")? })
    }

    /// Returns the number of partitions of a topic; 0 if it does not exist.
    pub(super) fn partitions(&self, topic: &str) -> anyhow::Result<u32> {
        let metadata = self.consumer.fetch_metadata(Some(topic), ANSWERS_WITHIN);
        let metadata = metadata.context("read the topic's metadata from Kafka")?;
        let Some(found) = metadata.topics().first() else { return Ok(0) };
        match found.error().map(RDKafkaErrorCode::from) {
            None => Ok(u32::try_from(found.partitions().len())?),
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(0),
            // Such as a topic without a leader after a restart.
            Some(error) => bail!("Kafka cannot describe the topic {topic:?} now: {error}"),
        }
    }

    /// Returns the offset of the first record, and the one behind the last.
    pub(super) fn bounds(&self, topic: &str, partition: i32) -> anyhow::Result<(i64, i64)> {
        let bounds = self.consumer.fetch_watermarks(topic, partition, ANSWERS_WITHIN);
        bounds.with_context(|| format!("ask Kafka for the end of partition {partition} of {topic:?}"))
    }

    /// Passes on the records of a range, until `is_over` says so. A record that is missing is an error.
    pub(super) fn read(
        &self,
        (topic, partition): (&str, i32),
        Range { start: mut next, end }: Range<i64>,
        is_over: &dyn Fn() -> bool,
        mut take: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if next >= end {
            return Ok(());
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Offset(next))?;
        self.consumer.assign(&assignment).context("assign a partition")?;
        let mut last = Instant::now();
        while next < end && !is_over() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) if message.partition() == partition && message.topic() == topic => {
                    if message.offset() != next {
                        let gap = format!(
                            "partition {partition} of {topic:?} has no record at offset {next}, but one at {}: it was \
                             compacted, or has a writer that uses transactions. An archive could not give the records \
                             their offsets again",
                            message.offset()
                        );
                        return Err(Misuse::new(gap).into());
                    }
                    take(&message)?;
                    next += 1;
                    last = Instant::now();
                }
                Some(Err(error)) if is_final(error.rdkafka_error_code()) => {
                    return Err(error).with_context(|| format!("read partition {partition} of {topic:?}"));
                }
                // The consumer recovers by itself.
                Some(Ok(_) | Err(_)) | None if last.elapsed() < ANSWERS_WITHIN => {}
                Some(Err(error)) => return Err(error).context("read from Kafka"),
                Some(Ok(_)) | None => bail!("Kafka returns no record at offset {next} of partition {partition}"),
            }
        }
        Ok(())
    }
}

fn is_final(code: Option<RDKafkaErrorCode>) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, OffsetOutOfRange, UnknownPartition};
    matches!(code, Some(AutoOffsetReset | OffsetOutOfRange | UnknownPartition))
}
