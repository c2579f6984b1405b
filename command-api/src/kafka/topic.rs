//! The topic of the log: made once.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chassis::kafka::KafkaSettings;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;

use crate::group;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct TopicSettings {
    pub name: String,
    /// Fixed for ever: an aggregate's partition hangs on it.
    pub partitions: u32,
    pub replication: u32,
    pub min_isr: u32,
}

/// Creates the log's topic and the one on which its owners meet; what exists already is left as it is.
pub async fn create(kafka: &KafkaSettings, settings: &TopicSettings) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        kafka.admin("command-api").create().context("create a Kafka client")?;
    let (partitions, min_isr) = (i32::try_from(settings.partitions)?, settings.min_isr.to_string());
    let copies = i32::try_from(settings.replication)?;
    let log = NewTopic::new(&settings.name, partitions, TopicReplication::Fixed(copies))
        .set("cleanup.policy", "delete")
        // The log is the store: nothing of it may ever go.
        .set("retention.ms", "-1")
        .set("retention.bytes", "-1")
        .set("min.insync.replicas", &min_isr)
        // A replica that lags must not lead: acknowledged records would be gone.
        .set("unclean.leader.election.enable", "false");
    let owners = group::topic(&settings.name);
    let owners = NewTopic::new(&owners, partitions, TopicReplication::Fixed(copies));
    let options = AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN)).request_timeout(Some(ANSWER_WITHIN));
    let results = admin.create_topics([&log, &owners], &options).await.context("ask Kafka for the topics")?;
    for result in results {
        match result {
            Ok(topic) => tracing::info!(topic, partitions = settings.partitions, "created the topic"),
            Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => tracing::info!(topic, "the topic exists"),
            Err((topic, code)) => bail!("Kafka refused the topic {topic:?}: {code}"),
        }
    }
    Ok(())
}
