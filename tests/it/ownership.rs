//! Partitions and their owners: what one instance acknowledged, every other one knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fixture::{Client, Shop, eventually, read_log};

fn restock() -> Value {
    json!({ "quantity": 1 })
}

fn record() -> Value {
    json!({ "name": "A", "price_cents": 1, "stock": 1 })
}

#[tokio::test]
async fn a_command_for_another_instances_partition_is_answered_by_its_owner() {
    let shop = Shop::new(4).await;
    let first = shop.start_command_api("0-1").await;
    let second = shop.start_command_api("2-3").await;
    first.wait_ready().await;
    second.wait_ready().await;
    for n in 0..16 {
        let path = format!("/v1/products/cd-{n}/register");
        let key = [("idempotency-key", "k")];
        // Owners become known as their claims are read.
        let answer = eventually("the owner is found", async || {
            Some(first.client().post_with(&path, &key, record()).await).filter(|answer| answer.status != 503)
        });
        let answer = answer.await.accepted(&["product.registered.v1"]);
        let again = second.client().post_with(&path, &key, record()).await;
        assert_eq!(again.json(), answer.json());
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
    }
    let partitions: std::collections::BTreeSet<_> =
        read_log(&shop).await.iter().map(|commit| commit.partition).collect();
    assert_eq!(partitions.len(), 4, "sixteen aggregates hit every partition");
}

#[tokio::test]
async fn without_an_owner_a_command_is_refused_and_may_be_sent_again() {
    let shop = Shop::new(2).await;
    let only_one = shop.command_api_for("0").await;
    let mut refused = 0;
    for n in 0..8 {
        let answer = only_one.client().post(&format!("/v1/products/cd-{n}/register"), record()).await;
        if answer.status == 503 {
            refused += 1;
            assert!(answer.header("retry-after").is_some() && answer.header("idempotency-key").is_some(), "{answer:?}");
        }
    }
    assert!(refused > 0, "eight aggregates hit both partitions");
    let other = shop.command_api_for("1").await;
    for n in 0..8 {
        let path = format!("/v1/products/cd-{n}/register");
        eventually("the new owner is found", async || {
            Some(only_one.client().post(&path, record()).await).filter(|answer| answer.status == 200)
        })
        .await;
    }
    drop(other);
}

#[tokio::test]
async fn an_instance_that_starts_again_continues_versions_and_knows_repeats() {
    let shop = Shop::new(2).await;
    let key = [("idempotency-key", "k")];
    let first = shop.command_api().await;
    first.client().post("/v1/products/cd/register", record()).await.accepted(&["product.registered.v1"]);
    let before = first.client().post_with("/v1/products/cd/restock", &key, restock()).await;
    first.crash().await;
    let second = shop.command_api().await;
    let again = second.client().post_with("/v1/products/cd/restock", &key, restock()).await;
    assert_eq!((again.json(), again.header("idempotent-replayed")), (before.json(), Some("true")));
    let next = second.client().post("/v1/products/cd/restock", restock()).await;
    assert_eq!(next.accepted(&["product.restocked.v1"]).header("etag"), Some("\"3\""));
}

#[tokio::test]
async fn a_stop_in_the_middle_of_load_loses_nothing_that_was_acknowledged() {
    let shop = Shop::new(2).await;
    let service = shop.command_api().await;
    let load = Load::start(vec![service.client()]);
    load.acknowledged(200).await;
    service.stop().await;
    load.compare_with_log(&shop).await;
}

#[tokio::test]
async fn a_crash_in_the_middle_of_load_loses_nothing_that_was_acknowledged() {
    let shop = Shop::new(2).await;
    let service = shop.command_api().await;
    let load = Load::start(vec![service.client()]);
    load.acknowledged(200).await;
    service.crash().await;
    load.compare_with_log(&shop).await;
}

#[tokio::test]
async fn when_two_instances_claim_one_partition_nothing_is_lost_or_doubled_and_one_of_them_serves() {
    let shop = Shop::new(1).await;
    let first = shop.command_api().await;
    let load = Load::start(vec![first.client()]);
    load.acknowledged(100).await;
    let second = shop.start_command_api("0").await;
    eventually("one of both serves", async || {
        let answer = second.client().post("/v1/products/late/register", record()).await;
        Some(answer).filter(|answer| answer.status == 200)
    })
    .await;
    load.compare_with_log(&shop).await;
}

#[tokio::test]
async fn instances_come_and_go_under_load_and_no_command_fails() {
    let shop = Shop::new(6).await;
    let first = shop.member().await;
    let load = Load::start(vec![first.client()]);
    load.acknowledged(100).await;
    let second = shop.member().await;
    let third = shop.member().await;
    load.acknowledged(300).await;
    second.stop().await;
    load.acknowledged(500).await;
    third.stop().await;
    load.acknowledged(700).await;
    assert_eq!(load.refused(), 0, "they wait while a partition moves");
    load.compare_with_log(&shop).await;
}

#[tokio::test]
async fn when_an_instance_dies_another_one_takes_over_and_commands_wait_for_it() {
    let shop = Shop::new(6).await;
    let survivor = shop.member().await;
    let victim = shop.member().await;
    let load = Load::start(vec![survivor.client()]);
    load.acknowledged(200).await;
    victim.crash().await;
    load.acknowledged(500).await;
    assert_eq!(load.refused(), 0, "they wait until the owner is known to be dead");
    load.compare_with_log(&shop).await;
}

/// Clients that restock products, each under keys of its own, and remember what was acknowledged.
struct Load {
    clients: JoinSet<BTreeMap<(String, String), u64>>,
    enough: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

impl Load {
    fn start(targets: Vec<Client>) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let (count, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        for (worker, client) in (0..8).zip(targets.into_iter().cycle()) {
            let (enough, count, refused) = (enough.clone(), count.clone(), refused.clone());
            clients.spawn(async move {
                let mut acknowledged = BTreeMap::new();
                let product = format!("cd-{worker}");
                client.post(&format!("/v1/products/{product}/register"), record()).await;
                for n in 0_u64.. {
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("k-{n}");
                    let path = format!("/v1/products/{product}/restock");
                    let answer = client.try_post(&path, &[("idempotency-key", &key)], restock()).await;
                    match answer {
                        Ok(answer) if answer.status == 200 => {
                            let version = answer.json()["version"].as_u64().unwrap();
                            acknowledged.insert((format!("product/{product}"), key), version);
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(_) => _ = refused.fetch_add(1, Ordering::Relaxed),
                        // Nobody listens any more.
                        Err(_) => break,
                    }
                }
                acknowledged
            });
        }
        Self { clients, enough, count, refused }
    }

    async fn acknowledged(&self, so_many: u64) {
        eventually("commands are acknowledged", async || (self.count.load(Ordering::Relaxed) >= so_many).then_some(()))
            .await;
    }

    /// Answered, but not accepted.
    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Every acknowledged command counts exactly once, at the version that its answer told.
    async fn compare_with_log(mut self, shop: &Shop) {
        self.enough.store(true, Ordering::Relaxed);
        let mut acknowledged = BTreeMap::new();
        while let Some(client) = self.clients.join_next().await {
            acknowledged.extend(client.unwrap());
        }
        assert!(!acknowledged.is_empty());
        let mut counted: BTreeMap<(String, String), Vec<u64>> = BTreeMap::new();
        for commit in read_log(shop).await {
            counted.entry((commit.aggregate, commit.command_id)).or_default().push(commit.version);
        }
        for (command, version) in acknowledged {
            assert_eq!(counted.get(&command), Some(&vec![version]), "{command:?}");
        }
    }
}
