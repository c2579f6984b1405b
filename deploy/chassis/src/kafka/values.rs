//! Reads small topics with one partition from beginning to end.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::KafkaSettings;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl KafkaSettings {
    /// Returns all values of the topic in order; none if the topic does not exist.
    pub async fn values(&self, topic: &str) -> Result<Vec<Vec<u8>>, KafkaError> {
        let (settings, topic) = (self.clone(), topic.to_owned());
        // Creating, polling and dropping a client block.
        let read = tokio::task::spawn_blocking(move || settings.values_blocking(&topic)).await;
        read.expect("reading a topic does not panic")
    }

    /// Reads the topic every second until its values satisfy `is_enough`.
    pub async fn await_values(&self, topic: &str, mut is_enough: impl FnMut(&[Vec<u8>]) -> bool) {
        loop {
            match self.values(topic).await {
                Ok(values) if is_enough(&values) => return,
                Ok(_) => {}
                Err(error) => tracing::debug!(topic, error = %error, "reading the topic failed"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn values_blocking(&self, topic: &str) -> Result<Vec<Vec<u8>>, KafkaError> {
        let consumer: BaseConsumer = self.reader("values").set("enable.partition.eof", "true").create()?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, 0, Offset::Beginning)?;
        consumer.assign(&assignment)?;
        let (begun, mut values) = (Instant::now(), Vec::new());
        loop {
            match consumer.poll(POLL) {
                Some(Ok(message)) => values.push(message.payload().unwrap_or_default().to_vec()),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(values),
                Some(Err(error)) if is_missing(&error) => return Ok(Vec::new()),
                Some(Err(error)) if begun.elapsed() > ANSWER_WITHIN => return Err(error),
                None if begun.elapsed() > ANSWER_WITHIN => {
                    return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
                }
                // The consumer recovers by itself.
                Some(Err(_)) | None => {}
            }
        }
    }
}

fn is_missing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
    matches!(error.rdkafka_error_code(), Some(UnknownPartition | UnknownTopic | UnknownTopicOrPartition))
}
