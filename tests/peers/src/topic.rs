//! Topics of these programs' own.

use std::time::Duration;

use anyhow::{Result, bail};
use chassis::kafka::KafkaSettings;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;

use crate::setting;

/// As many as the product's log has where nobody said otherwise.
const PARTITIONS: i32 = 12;

/// `KAFKA_BROKERS`.
pub fn kafka() -> Result<KafkaSettings> {
    Ok(KafkaSettings { brokers: setting::required("KAFKA_BROKERS")? })
}

/// Makes a topic unless it is there already. `PARTITIONS`, default 12; returns how many. One copy, as the product's
/// log has on one broker.
pub async fn create(kafka: &KafkaSettings, name: &str) -> Result<i32> {
    let partitions = setting::or("PARTITIONS", PARTITIONS)?;
    let admin: AdminClient<DefaultClientContext> = kafka.admin("peers").create()?;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    for result in admin.create_topics(&[topic], &options).await? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, error)) => bail!("the topic {topic} cannot be made: {error}"),
        }
    }
    Ok(partitions)
}
