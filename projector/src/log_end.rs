//! Publishes the end of the log to readers every second: a token of a later position was never issued, and a view that
//! shows less lags.
//!
//! It runs independently of folding, with its own Kafka client. If it fails, readers wait for tokens of any position.

use std::sync::Arc;
use std::time::Duration;

use chassis::kafka::KafkaSettings;
use chassis::kafka::group::Assignment;
use chassis::redis::{Connection, Pipelines, RESPONSE_TIMEOUT};
use chassis::shutdown::Shutdown;
use chassis::telemetry::with_causes;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};
use redis::RedisError;
use schemas::cache::{END, End, Keys};
use tokio::sync::watch;
use tokio::task::JoinError;

const EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum EndError {
    #[error("reading the end of the log from Kafka failed")]
    Log(#[from] KafkaError),
    #[error("writing the end of the log to Redis failed")]
    Redis(#[from] RedisError),
    #[error("the request to Kafka was aborted")]
    Asking(#[from] JoinError),
}

/// The publisher of the ends of a log's partitions, from Kafka to Redis.
pub(crate) struct LogEnd {
    consumer: Arc<BaseConsumer>,
    topic: String,
    connection: Connection,
    keys: Keys,
}

impl LogEnd {
    pub(crate) fn new(
        kafka: &KafkaSettings,
        topic: &str,
        connection: Connection,
        keys: Keys,
    ) -> Result<Self, KafkaError> {
        let consumer = Arc::new(kafka.reader("projector-log-end").create()?);
        Ok(Self { consumer, topic: topic.to_owned(), connection, keys })
    }

    /// Publishes the ends of the assigned partitions, until shutdown.
    pub(crate) async fn publish(mut self, assignment: watch::Receiver<Assignment>, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let assigned = assignment.borrow().clone().unwrap_or_default();
            let published = async {
                match assigned.is_empty() {
                    true => Ok(()),
                    false => self.publish_once(assigned.iter().copied()).await,
                }
            };
            // An unresponsive broker must not delay the shutdown.
            let published = tokio::select! {
                published = published => published,
                () = shutdown.requested() => return,
            };
            if let Err(error) = published {
                let error = with_causes(&error);
                tracing::debug!(error, "end of the log not published; queries wait for tokens of any position");
            }
            shutdown.sleep(EVERY).await;
        }
    }

    async fn publish_once(&mut self, partitions: impl Iterator<Item = u32>) -> Result<(), EndError> {
        let mut asked = TopicPartitionList::new();
        for partition in partitions {
            asked.add_partition_offset(&self.topic, partition.cast_signed(), Offset::End)?;
        }
        // The time is read before the ends, so every record acknowledged by then is below the end.
        let time: (i64, i64) = redis::cmd("TIME").query_async(&mut self.connection).await?;
        let at_ms = time.0 * 1000 + time.1 / 1000;
        let consumer = self.consumer.clone();
        let ends = tokio::task::spawn_blocking(move || ends(&consumer, asked)).await??;
        let mut pipelines = Pipelines::default();
        for (partition, next_offset) in ends {
            let end = End { next_offset, at_ms }.to_string();
            pipelines.of(partition).set(self.keys.end(partition), &end).ignore();
            pipelines.news().publish(self.keys.news(), format!("{partition} {END}={end}")).ignore();
        }
        for answer in pipelines.send::<()>(&self.connection, RESPONSE_TIMEOUT).await.into_values() {
            answer?;
        }
        Ok(())
    }
}

/// Returns the offset after the last record of each partition whose broker answers. Blocks.
fn ends(consumer: &BaseConsumer, partitions: TopicPartitionList) -> Result<Vec<(u32, i64)>, KafkaError> {
    // Drains the queue of broker errors.
    while consumer.poll(Duration::ZERO).is_some() {}
    // A lookup of `Offset::End` takes one request per broker, for all of its partitions.
    let told = consumer.offsets_for_times(partitions, ANSWER_WITHIN)?;
    let of_partition = |told: TopicPartitionListElem<'_>| match told.offset() {
        Offset::Offset(next) if told.error().is_ok() => Some((told.partition().cast_unsigned(), next)),
        _ => None,
    };
    Ok(told.elements().into_iter().filter_map(of_partition).collect())
}
