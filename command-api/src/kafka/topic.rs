//! The topic of the log: made once.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chassis::kafka::KafkaSettings;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct TopicSettings {
    pub name: String,
    /// Fixed for ever: an aggregate's partition hangs on it.
    pub partitions: u32,
    pub replication: u32,
    pub min_isr: u32,
}

/// Creates the topic; one that exists already is left as it is.
pub async fn create(kafka: &KafkaSettings, settings: &TopicSettings) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        kafka.admin("command-api").create().context("create a Kafka client")?;
    let min_isr = settings.min_isr.to_string();
    let topic = NewTopic::new(
        &settings.name,
        i32::try_from(settings.partitions)?,
        TopicReplication::Fixed(i32::try_from(settings.replication)?),
    )
    .set("cleanup.policy", "delete")
    // The log is the store: nothing of it may ever go.
    .set("retention.ms", "-1")
    .set("retention.bytes", "-1")
    .set("min.insync.replicas", &min_isr)
    // A replica that lags must not lead: acknowledged records would be gone.
    .set("unclean.leader.election.enable", "false");
    let options = AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN)).request_timeout(Some(ANSWER_WITHIN));
    let results = admin.create_topics([&topic], &options).await.context("ask Kafka for the topic")?;
    match results.into_iter().next() {
        Some(Ok(_)) => tracing::info!(topic = settings.name, partitions = settings.partitions, "created the topic"),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
            tracing::info!(topic = settings.name, "the topic exists")
        }
        Some(Err((_, code))) => bail!("Kafka refused the topic {:?}: {code}", settings.name),
        None => bail!("Kafka said nothing of the topic {:?}", settings.name),
    }
    Ok(())
}
