//! Members of a consumer group, which come and go.

use std::time::Duration;

use chassis::kafka::KafkaSettings;
use chassis::kafka::group::{Assignment, Group, Losses};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::groups::GroupMemberInfo;
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
        let group =
            Group::join(&kafka, name, &shop.topic, &coordination_topic(&shop.topic), Losses::AtTheEnd, sender).unwrap();
        Self { group, assignment }
    }

    async fn is_assigned(&mut self) {
        let assigned = tokio::time::timeout(DEADLINE, self.assignment.wait_for(Option::is_some));
        assigned.await.expect("the group answers in time").unwrap();
    }

    async fn has(&mut self, partitions: usize) {
        let has = |assigned: &Assignment| assigned.as_ref().is_some_and(|assigned| assigned.len() == partitions);
        let assigned = tokio::time::timeout(DEADLINE, self.assignment.wait_for(has));
        assigned.await.unwrap_or_else(|_| panic!("no {partitions} partitions in time")).unwrap();
    }

    async fn hand_over(self) {
        tokio::task::spawn_blocking(|| self.group.hand_over()).await.unwrap();
    }

    async fn leave(self) {
        tokio::task::spawn_blocking(|| self.group.leave()).await.unwrap();
    }
}

/// A member as the broker knows it: its name, and how many partitions it has, which is 0 during a rebalance.
type Known = (String, usize);

fn members(shop: &Shop) -> Vec<Known> {
    let mut config = ClientConfig::new();
    let client: BaseConsumer = config.set("bootstrap.servers", &shop.brokers).create().unwrap();
    let groups = client.fetch_group_list(Some(&shop.topic), DEADLINE).unwrap();
    let members = groups.groups().iter().flat_map(|group| group.members());
    let known = |member: &GroupMemberInfo| (member.client_id().to_owned(), partitions(member.assignment()));
    let mut members: Vec<_> = members.map(known).collect();
    members.sort();
    members
}

/// Returns the number of partitions in an assignment of one topic, in Kafka's consumer protocol: a version (2 bytes), the
/// number of topics (4), the length of the topic's name (2), the name, the number of partitions (4), and each of them.
fn partitions(assignment: Option<&[u8]>) -> usize {
    let number = |assignment: &[u8]| {
        let (_version, rest) = assignment.split_at_checked(6)?;
        let (length, rest) = rest.split_first_chunk()?;
        let (_name, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        rest.first_chunk().map(|number| u32::from_be_bytes(*number) as usize)
    };
    assignment.and_then(number).unwrap_or(0)
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
        assert_eq!(members(&shop), [], "after {pause:?}");
    }
}

/// What no member has stands still: nobody folds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_keeps_its_partitions_until_others_have_them() {
    let shop = Shop::new(12).await;
    let known =
        |all: &[(&str, usize)]| all.iter().map(|(name, has)| ((*name).to_owned(), *has)).collect::<Vec<Known>>();
    let mut one = Member::new(&shop, "one");
    one.has(12).await;
    let mut two = Member::new(&shop, "two");
    one.has(6).await;
    assert_eq!(members(&shop), known(&[("one", 6), ("two", 6)]), "one has given up half");
    two.has(6).await;
    one.hand_over().await;
    assert_eq!(members(&shop), known(&[("two", 12)]), "one has left");
    two.has(12).await;
    two.hand_over().await;
    assert_eq!(members(&shop), [], "nobody is left");
}
