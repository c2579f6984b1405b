//! The topics of the log: made once.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chassis::kafka::KafkaSettings;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use schemas::topic::{CLOCK_PARTITIONS, CLOCK_SETTINGS, LogTopic, MIN_ISR, SETTINGS, clock, meeting};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Of a new log, where nobody says otherwise.
const PARTITIONS: u32 = 12;

/// Creates the log's topic, the one on which its owners meet and the one of the brokers' clocks; what exists already is left
/// as it is.
pub async fn create(kafka: &KafkaSettings, topic: &LogTopic) -> anyhow::Result<()> {
    let (partitions, min_isr) = (topic.partitions.unwrap_or(PARTITIONS), topic.min_isr.to_string());
    let (count, copies) = (i32::try_from(partitions)?, i32::try_from(topic.replication)?);
    let log = NewTopic::new(&topic.name, count, TopicReplication::Fixed(copies)).set(MIN_ISR, &min_isr);
    let log = SETTINGS.iter().fold(log, |log, (name, value)| log.set(name, value));
    let owners = meeting(&topic.name);
    let owners = NewTopic::new(&owners, count, TopicReplication::Fixed(copies));
    let name = clock(&topic.name);
    create_all(kafka, &[log, owners, clocks(&name, copies)]).await
}

/// Creates the topic of the brokers' clocks, which logs of earlier builds lack.
pub(crate) async fn create_clock(kafka: &KafkaSettings, topic: &LogTopic) -> anyhow::Result<()> {
    create_all(kafka, &[clocks(&clock(&topic.name), i32::try_from(topic.replication)?)]).await
}

fn clocks(name: &str, copies: i32) -> NewTopic<'_> {
    let clocks = NewTopic::new(name, CLOCK_PARTITIONS, TopicReplication::Fixed(copies));
    CLOCK_SETTINGS.iter().fold(clocks, |clocks, (name, value)| clocks.set(name, value))
}

async fn create_all(kafka: &KafkaSettings, topics: &[NewTopic<'_>]) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        kafka.admin("command-api").create().context("create a Kafka client")?;
    let options = AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN)).request_timeout(Some(ANSWER_WITHIN));
    let results = admin.create_topics(topics, &options).await.context("ask Kafka for the topics")?;
    for result in results {
        match result {
            Ok(topic) => tracing::info!(topic, "created the topic"),
            Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => tracing::info!(topic, "the topic exists"),
            Err((topic, code)) => bail!("Kafka refused the topic {topic:?}: {code}"),
        }
    }
    Ok(())
}
