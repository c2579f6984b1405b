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
            let (settings, name) = (self.clone(), topic.to_owned());
            // Making, asking and dropping a client block.
            let looked = tokio::task::spawn_blocking(move || settings.look(&name)).await;
            if let Some(facts) = looked.expect("looking at a topic does not panic")? {
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

    /// `None` as long as Kafka does not answer or has no such topic. Blocks, inside a runtime.
    fn look(&self, topic: &str) -> Result<Option<TopicFacts>, KafkaError> {
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
