//! What a service checks before it serves.

use chassis::kafka::KafkaSettings;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use crate::fixture::{Service, Shop};

fn admin(shop: &Shop) -> AdminClient<DefaultClientContext> {
    KafkaSettings { brokers: shop.brokers.clone() }.admin("it").create().unwrap()
}

async fn set(shop: &Shop, name: &str, value: &str) {
    // Whatever is not said here falls back to the broker's own.
    let config = AlterConfig::new(ResourceSpecifier::Topic(&shop.topic)).set(name, value);
    admin(shop).alter_configs([&config], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

#[tokio::test]
async fn a_log_that_could_forget_is_refused_with_every_reason() {
    let shop = Shop::new(2).await;
    set(&shop, "cleanup.policy", "compact").await;
    for service in [shop.start_command_api("0-1").await, shop.start_projector()] {
        let failure = service.failure().await;
        assert!(failure.contains("cleanup.policy is \"compact\", not \"delete\""), "{failure}");
        assert!(failure.contains("retention.ms is \"604800000\", not \"-1\""), "{failure}");
    }
}

#[tokio::test]
async fn a_log_with_other_partitions_than_it_was_made_with_is_refused() {
    let shop = Shop::new(2).await;
    let grown = NewPartitions::new(&shop.topic, 3);
    admin(&shop).create_partitions([&grown], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    let told = shop.env([("EVENTS_PARTITIONS", "2".to_owned())]);
    let failure = Service::command_api(&told).await.failure().await;
    assert!(failure.contains("it has 3 partitions, not 2"), "{failure}");
}

#[tokio::test]
async fn a_log_with_fewer_copies_than_asked_for_is_refused() {
    let shop = Shop::new(1).await;
    let told = shop.env([("EVENTS_REPLICATION", "3".to_owned()), ("EVENTS_MIN_ISR", "2".to_owned())]);
    let failure = Service::command_api(&told).await.failure().await;
    assert!(failure.contains("it has 1 copies, not 3 or more"), "{failure}");
    assert!(failure.contains("min.insync.replicas is \"1\", not 2 or more"), "{failure}");
}
