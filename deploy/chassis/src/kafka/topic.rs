//! What Kafka says of a topic.

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
/// Between looks at a topic that is in use.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A topic as it is.
#[derive(Debug, Clone)]
pub struct TopicFacts {
    pub partitions: u32,
    /// Of the partition that has the fewest copies.
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
    #[error("could not make a client of Kafka")]
    Client(#[from] KafkaError),
    /// With every reason.
    #[error("the topic {topic:?} cannot be used: {differences}")]
    Refused { topic: String, differences: String },
}

impl KafkaSettings {
    /// Waits for Kafka and a topic, and returns the number of its partitions; `None`: told to stop before. `judge`
    /// says what is wrong with it; a topic that is wrong is an error at once, because waiting does not mend it.
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
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.requested() => {}
            }
        }
        Ok(None)
    }

    /// Looks at a topic in use every ten seconds, and logs what `judge` finds wrong with it once that changes. `tell` is
    /// called with whether it is wrong. Nothing stops: that would be an outage, and what was written is there still.
    pub async fn watch_topic(
        self,
        topic: String,
        judge: impl Fn(&TopicFacts) -> Vec<String>,
        tell: impl Fn(bool),
        shutdown: Shutdown,
    ) {
        let mut known = Vec::new();
        loop {
            // Where Kafka does not answer, others say so.
            if let Ok(Some(facts)) = self.look(&topic).await {
                let differences = judge(&facts);
                tell(!differences.is_empty());
                if differences.is_empty() && !known.is_empty() {
                    tracing::info!(topic, "the topic is as it has to be again");
                } else if differences != known {
                    let differences = differences.join("; ");
                    tracing::error!(topic, differences, "the topic was changed: the log may lose records; set it back");
                }
                known = differences;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.requested() => return,
            }
        }
    }

    /// `None` as long as Kafka does not answer or has no such topic.
    async fn look(&self, topic: &str) -> Result<Option<TopicFacts>, KafkaError> {
        let (settings, topic) = (self.clone(), topic.to_owned());
        // Making, asking and dropping a client block.
        let looked = tokio::task::spawn_blocking(move || settings.look_blocking(&topic)).await;
        looked.expect("looking at a topic does not panic")
    }

    /// To be called inside a runtime.
    fn look_blocking(&self, topic: &str) -> Result<Option<TopicFacts>, KafkaError> {
        let admin: AdminClient<DefaultClientContext> = self.admin("topic").create()?;
        let metadata = match admin.inner().fetch_metadata(Some(topic), ANSWER_WITHIN) {
            Ok(metadata) => metadata,
            Err(error) => {
                tracing::debug!(error = %error, "Kafka does not tell of the topic");
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
        let count = |count: usize| u32::try_from(count).expect("Kafka counts them in 32 bits");
        Ok(Some(TopicFacts { partitions: count(partitions.len()), replication: count(fewest), settings }))
    }
}
