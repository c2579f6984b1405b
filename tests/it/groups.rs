//! Members of a consumer group, which come and go.

use std::time::Duration;

use chassis::kafka::KafkaSettings;
use chassis::kafka::group::{Assignment, Group};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use schemas::topic::coordination_topic;
use tokio::sync::watch;

use crate::fixture::{DEADLINE, Shop};

struct Member {
    group: Group,
    assignment: watch::Receiver<Assignment>,
}

impl Member {
    fn new(shop: &Shop, name: &str) -> Self {
        let kafka = KafkaSettings::from_env(&shop.env([])).unwrap();
        let (sender, assignment) = watch::channel(None);
        let group = Group::join(&kafka, name, &shop.topic, &coordination_topic(&shop.topic), sender).unwrap();
        Self { group, assignment }
    }

    async fn is_assigned(&mut self) {
        let assigned = tokio::time::timeout(DEADLINE, self.assignment.wait_for(Option::is_some));
        assigned.await.expect("the group answers in time").unwrap();
    }

    async fn leave(self) {
        tokio::task::spawn_blocking(|| self.group.leave()).await.unwrap();
    }
}

/// Returns the names of the members that the broker knows.
fn members(shop: &Shop) -> Vec<String> {
    let mut config = ClientConfig::new();
    let client: BaseConsumer = config.set("bootstrap.servers", &shop.brokers).create().unwrap();
    let groups = client.fetch_group_list(Some(&shop.topic), DEADLINE).unwrap();
    let members = groups.groups().iter().flat_map(|group| group.members());
    members.map(|member| member.client_id().to_owned()).collect()
}

/// A broker that is not told waits for the member until it counts as dead, and assigns nothing to others meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_leaves_at_any_moment_of_a_rebalance() {
    let shop = Shop::new(12).await;
    for pause in [0, 100, 200, 300, 400].map(Duration::from_millis) {
        let mut one = Member::new(&shop, "one");
        one.is_assigned().await;
        let mut two = Member::new(&shop, "two");
        two.is_assigned().await;
        one.leave().await;
        tokio::time::sleep(pause).await;
        two.leave().await;
        assert_eq!(members(&shop), [""; 0], "after {pause:?}");
    }
}
