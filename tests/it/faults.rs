//! Three brokers and three owners under load and faults. After each fault, every answer is verified against the log;
//! the longest time without any answer is printed.

use std::time::Instant;

use serde_json::json;
use tokio::time::{Duration, timeout};

use crate::fixture::{Client, Load, Shop, eventually, pause, prove, read_log, read_log_of};
use crate::stack::Stack;

/// Longer than any failover, even on a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

struct Cluster {
    stack: Stack,
    edge: Client,
}

impl Cluster {
    async fn up() -> Self {
        let stack = Stack::up_with(&["--brokers", "3", "--command-apis", "3"]).await;
        let edge = stack.client();
        Self { stack, edge }
    }

    /// Runs the load while `fault` happens and for some time after it, and verifies the answers.
    async fn under_load(&self, name: &str, fault: impl AsyncFnOnce(&Stack)) {
        let load = Load::start(vec![self.edge.clone()]);
        load.answered(100).await;
        let begun = Instant::now();
        fault(&self.stack).await;
        timeout(ENDS_WITHIN, load.answered(300)).await.expect("commands are answered again after the fault");
        let took = begun.elapsed();
        let tried_again = load.refused();
        let (brokers, topic, partitions) = self.stack.log();
        let heard = load.end().await;
        let heard = prove(heard, &read_log_of(&brokers, &topic, partitions).await);
        println!("{name}: {heard}, {tried_again} retries, in {took:?}");
        assert!(heard.accepted > 0);
    }
}

async fn signal(stack: &Stack, name: &str, signal: &str) {
    stack.tell(&["kill", name, signal]).await;
}

/// Stops processes with SIGSTOP for so long that the others take them for dead, and continues them.
async fn freeze(stack: &Stack, names: &[&str], length: Duration) {
    for name in names {
        signal(stack, name, "STOP").await;
    }
    let until = Instant::now() + length;
    while Instant::now() < until {
        pause().await;
    }
    for name in names {
        signal(stack, name, "CONT").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_befalls_owners_brokers_and_postgres_every_answer_is_what_the_log_says() {
    let cluster = Cluster::up().await;
    cluster.under_load("an owner is killed", async |stack| stack.kill("command-api-1").await).await;
    let past_its_session = Duration::from_secs(8);
    cluster
        .under_load("an owner is frozen past its session", async |stack| {
            freeze(stack, &["command-api-2"], past_its_session).await;
        })
        .await;
    for broker in ["kafka-1", "kafka-2"] {
        // Each broker leads some of the partitions and follows in the others.
        cluster
            .under_load("a broker is killed", async |stack| {
                stack.tell(&["kill", broker]).await;
                freeze(stack, &[], past_its_session).await;
                stack.tell(&["start", broker]).await;
            })
            .await;
    }
    cluster
        .under_load("two of three brokers are frozen", async |stack| {
            freeze(stack, &["kafka-2", "kafka-3"], Duration::from_secs(5)).await;
        })
        .await;
    cluster
        .under_load("an owner leaves and comes back", async |stack| {
            stack.tell(&["stop", "command-api-3"]).await;
            stack.tell(&["start", "command-api-3"]).await;
        })
        .await;
    cluster
        .under_load("Postgres is gone for a while", async |stack| {
            stack.tell(&["stop", "postgres"]).await;
            stack.tell(&["start", "postgres"]).await;
        })
        .await;
}

#[tokio::test]
async fn an_owner_that_its_peers_cannot_reach_harms_nothing() {
    let shop = Shop::new(4).await;
    let (link, first) = shop.behind_a_proxy([]).await;
    let second = shop.member().await;
    let load = Load::start(vec![first.client(), second.client()]);
    load.answered(200).await;
    link.cut().await;
    // The first instance's own clients still reach it. Those of the second one retry or find that it has taken over.
    load.answered(200).await;
    link.restore().await;
    load.answered(200).await;
    prove(load.end().await, &read_log(&shop).await);
    for service in [&first, &second] {
        eventually("both instances serve every partition again", async || {
            for n in 0..16 {
                let answer = service.client().post(&format!("/v1/products/none-{n}/discontinue"), json!({})).await;
                if answer.status == 503 {
                    return None;
                }
                answer.rejected("not_registered");
            }
            Some(())
        })
        .await;
    }
}
