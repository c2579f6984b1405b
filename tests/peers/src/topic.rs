//! Topics of these programs.

use std::time::Duration;

use anyhow::{Result, bail};
use chassis::kafka::KafkaSettings;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;

use crate::setting;

/// Default number of partitions, the same as that of the product's log.
const PARTITIONS: i32 = 12;

/// Returns the settings for `KAFKA_BROKERS`.
pub fn kafka() -> Result<KafkaSettings> {
    Ok(KafkaSettings::plaintext(setting::required("KAFKA_BROKERS")?))
}

/// Creates a topic unless it exists, with `PARTITIONS` partitions, default 12, and returns their number. It has one
/// replica, like the product's log on one broker.
pub async fn create(kafka: &KafkaSettings, name: &str) -> Result<i32> {
    let partitions = setting::or("PARTITIONS", PARTITIONS)?;
    let admin: AdminClient<DefaultClientContext> = kafka.admin("peers").create()?;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    for result in admin.create_topics(&[topic], &options).await? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, error)) => bail!("cannot create the topic {topic}: {error}"),
        }
    }
    Ok(partitions)
}
