//! Creates the log's topics.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chassis::kafka::KafkaSettings;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use schemas::topic::{
    CLOCK_PARTITIONS, CLOCK_SETTINGS, LogTopic, MIN_ISR, SETTINGS, clock, coordination_topic, exceptions,
};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Default number of partitions of a new log.
const PARTITIONS: u32 = 12;

/// Creates the topic of the log, the one for coordination, the one for the brokers' clocks and the one for exceptions.
/// Existing ones are left unchanged.
pub async fn create(kafka: &KafkaSettings, topic: &LogTopic) -> anyhow::Result<()> {
    let count = i32::try_from(topic.partitions.unwrap_or(PARTITIONS))?;
    let (min_isr, coordination, clock) =
        (topic.min_isr.to_string(), coordination_topic(&topic.name), clock(&topic.name));
    let log = kept_for_ever(&topic.name, count, topic, &min_isr)?;
    let coordination = NewTopic::new(&coordination, count, copies(topic)?);
    create_topics(kafka, &[log, coordination, clocks(&clock, topic)?]).await?;
    create_exceptions(kafka, topic).await
}

/// Creates the topic for exceptions alone, if there is none.
pub(crate) async fn create_exceptions(kafka: &KafkaSettings, topic: &LogTopic) -> anyhow::Result<()> {
    let (min_isr, name) = (topic.min_isr.to_string(), exceptions(&topic.name));
    create_topics(kafka, &[kept_for_ever(&name, 1, topic, &min_isr)?]).await
}

/// Creates the topic for the brokers' clocks alone, if the log is one of an earlier build and lacks it. The account of
/// a service may not create topics. Blocks.
pub(crate) async fn create_clock(kafka: &KafkaSettings, topic: &LogTopic) -> anyhow::Result<()> {
    let (name, admin) = (clock(&topic.name), client(kafka)?);
    let found = admin.inner().fetch_metadata(Some(&name), ANSWER_WITHIN).context("look for the topic")?;
    if found.topics().iter().any(|topic| topic.error().is_none()) {
        return Ok(());
    }
    create_topics(kafka, &[clocks(&name, topic)?]).await
}

fn kept_for_ever<'a>(
    name: &'a str,
    partitions: i32,
    topic: &LogTopic,
    min_isr: &'a str,
) -> anyhow::Result<NewTopic<'a>> {
    let new = NewTopic::new(name, partitions, copies(topic)?).set(MIN_ISR, min_isr);
    Ok(SETTINGS.iter().fold(new, |new, (name, value)| new.set(name, value)))
}

fn clocks<'a>(name: &'a str, topic: &LogTopic) -> anyhow::Result<NewTopic<'a>> {
    let new = NewTopic::new(name, CLOCK_PARTITIONS, copies(topic)?);
    Ok(CLOCK_SETTINGS.iter().fold(new, |new, (name, value)| new.set(name, value)))
}

fn copies(topic: &LogTopic) -> anyhow::Result<TopicReplication<'static>> {
    Ok(TopicReplication::Fixed(i32::try_from(topic.replication)?))
}

async fn create_topics(kafka: &KafkaSettings, topics: &[NewTopic<'_>]) -> anyhow::Result<()> {
    let admin = client(kafka)?;
    let options = AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN)).request_timeout(Some(ANSWER_WITHIN));
    for result in admin.create_topics(topics, &options).await.context("create the topics")? {
        match result {
            Ok(topic) => tracing::info!(topic, "created the topic"),
            Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => tracing::info!(topic, "the topic already exists"),
            Err((topic, code)) => bail!("Kafka refused to create the topic {topic:?}: {code}"),
        }
    }
    Ok(())
}

fn client(kafka: &KafkaSettings) -> anyhow::Result<AdminClient<DefaultClientContext>> {
    kafka.admin("command-api").create().context("create a Kafka client")
}
