//! Inspection of topics: waiting for one at startup, and watching it for changes.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;

use super::KafkaSettings;
use crate::readiness::Condition;
use crate::shutdown::Shutdown;

const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(250);
/// Interval between checks of a topic in use.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Actual properties of a topic.
#[derive(Debug, Clone)]
pub struct TopicFacts {
    pub partitions: u32,
    /// Replication factor of the partition with the fewest replicas.
    pub replication: u32,
    settings: HashMap<String, String>,
}

impl TopicFacts {
    pub fn setting(&self, name: &str) -> Option<String> {
        self.settings.get(name).cloned()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error("creating a Kafka client failed")]
    Client(#[from] KafkaError),
    /// The topic's properties are unsuitable; lists every difference.
    #[error("the topic {topic:?} cannot be used: {differences}")]
    Refused { topic: String, differences: String },
}

impl KafkaSettings {
    /// Waits for Kafka and a topic, and returns its number of partitions, or `None` if shutdown is requested first.
    /// `judge` returns the differences from the expected properties; any difference is an error at once, because
    /// waiting does not resolve it.
    pub async fn await_topic(
        &self,
        topic: &str,
        judge: impl Fn(&TopicFacts) -> Vec<String>,
        kafka: &Condition,
        shutdown: &Shutdown,
    ) -> Result<Option<u32>, TopicError> {
        while !shutdown.is_requested() {
            if let Some(facts) = self.look(topic).await? {
                let differences = judge(&facts);
                if differences.is_empty() {
                    return Ok(Some(facts.partitions));
                }
                let differences = differences.join("; ");
                return Err(TopicError::Refused { topic: topic.to_owned(), differences });
            }
            kafka.waiting(format!("no topic {topic:?} at {}", self.brokers));
            shutdown.sleep(RETRY).await;
        }
        Ok(None)
    }

    /// Checks a topic in use every ten seconds, logs the differences that `judge` finds whenever they change, and calls
    /// `tell` with whether there are any. It never stops the service: that would be an outage, and records written so
    /// far still exist.
    pub async fn watch_topic(
        self,
        topic: String,
        judge: impl Fn(&TopicFacts) -> Vec<String>,
        tell: impl Fn(bool),
        shutdown: Shutdown,
    ) {
        let mut known = Vec::new();
        while !shutdown.is_requested() {
            // If Kafka does not answer, other parts of the service report it.
            if let Ok(Some(facts)) = self.look(&topic).await {
                let differences = judge(&facts);
                tell(!differences.is_empty());
                if differences.is_empty() && !known.is_empty() {
                    tracing::info!(topic, "topic settings are correct again");
                } else if differences != known {
                    let differences = differences.join("; ");
                    tracing::error!(topic, differences, "topic settings changed, records may be lost: restore them");
                }
                known = differences;
            }
            shutdown.sleep(LOOK_EVERY).await;
        }
    }

    /// Describes a topic; returns `None` if Kafka does not answer or has no such topic.
    async fn look(&self, topic: &str) -> Result<Option<TopicFacts>, KafkaError> {
        let (settings, topic) = (self.clone(), topic.to_owned());
        // Creating, using and dropping a client block.
        let looked = tokio::task::spawn_blocking(move || settings.look_blocking(&topic)).await;
        looked.expect("describing a topic does not panic")
    }

    /// Describes a topic, blocking. Must run inside a runtime.
    fn look_blocking(&self, topic: &str) -> Result<Option<TopicFacts>, KafkaError> {
        let admin: AdminClient<DefaultClientContext> = self.admin("topic").create()?;
        let metadata = match admin.inner().fetch_metadata(Some(topic), ANSWER_WITHIN) {
            Ok(metadata) => metadata,
            Err(error) => {
                tracing::debug!(error = %error, "fetching the topic's metadata failed");
                return Ok(None);
            }
        };
        let found = metadata.topics().first().filter(|topic| topic.error().is_none());
        let Some(partitions) = found.map(|topic| topic.partitions()).filter(|partitions| !partitions.is_empty()) else {
            return Ok(None);
        };
        let fewest = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or_default();
        let options = AdminOptions::new().request_timeout(Some(ANSWER_WITHIN));
        let asked = [ResourceSpecifier::Topic(topic)];
        let answers = Handle::current().block_on(admin.describe_configs(&asked, &options));
        let Some(Ok(described)) = answers.ok().and_then(|answers| answers.into_iter().next()) else { return Ok(None) };
        let settings = described.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect();
        let count = |count: usize| u32::try_from(count).expect("Kafka counts partitions and replicas in 32 bits");
        Ok(Some(TopicFacts { partitions: count(partitions.len()), replication: count(fewest), settings }))
    }
}
