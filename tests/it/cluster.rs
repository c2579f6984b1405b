//! Redis Cluster: masters die and slots move, and no token is answered with older data.

use std::path::PathBuf;
use std::process::Stdio;

use domain::AggregateType;
use projector::rebuild::{Options, rebuild};
use redis::{Cmd, FromRedisValue, cmd};
use schemas::aggregate;
use schemas::cache::Keys;
use tokio::process::{Child, Command};

use crate::ahead::{Crowd, Frozen};
use crate::fixture::{Shop, connect_to_redis, eventually, free_addr};
use crate::query_tier::given_by_redis;

const MASTERS: usize = 3;

/// Three masters with one replica each. They are killed when dropped.
struct Cluster {
    dir: PathBuf,
    nodes: Vec<Node>,
}

struct Node {
    port: u16,
    child: Child,
    /// Id of the node in the cluster.
    id: String,
}

impl Cluster {
    async fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("stampede-{name}"));
        let mut nodes = Vec::new();
        for _ in 0..2 * MASTERS {
            let (port, bus) = (free_addr().port(), free_addr().port());
            let dir = dir.join(port.to_string());
            std::fs::create_dir_all(&dir).unwrap();
            let mut server = Command::new("redis-server");
            server.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--cluster-enabled", "yes"]);
            server.args(["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "1000"]);
            server.args(["--port", &port.to_string(), "--cluster-port", &bus.to_string(), "--dir"]).arg(&dir);
            let child = server.stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
            let mut node = Node { port, child, id: String::new() };
            node.id =
                eventually("the node answers", async || node.try_ask(cmd("CLUSTER").arg("MYID")).await.ok()).await;
            nodes.push(node);
        }
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        create.args(["--cluster-replicas", "1", "--cluster-yes"]).stdout(Stdio::null());
        assert!(create.status().await.unwrap().success(), "the nodes become a cluster");
        let cluster = Self { dir, nodes };
        for node in &cluster.nodes {
            eventually("every node knows the cluster", async || {
                let info: String = node.ask(cmd("CLUSTER").arg("INFO")).await;
                (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:6")).then_some(())
            })
            .await;
        }
        cluster
    }

    fn url(&self) -> String {
        let [first, others @ ..] = &self.nodes[..] else { unreachable!("the cluster has nodes") };
        let others: Vec<_> = others.iter().map(|node| format!("node=127.0.0.1:{}", node.port)).collect();
        format!("redis-cluster://127.0.0.1:{}?{}", first.port, others.join("&"))
    }

    /// Returns the index of the node that says it serves the slot.
    async fn find_master(&self, slot: u16) -> Option<usize> {
        for (place, node) in self.nodes.iter().enumerate() {
            let nodes = node.try_ask::<String>(cmd("CLUSTER").arg("NODES")).await.unwrap_or_default();
            let own = nodes.lines().find(|line| line.contains("myself,master"));
            let ranges = own.into_iter().flat_map(|line| line.split(' ').skip(8));
            let mut ranges = ranges.filter_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
            });
            if ranges.any(|range| range.contains(&slot)) {
                return Some(place);
            }
        }
        None
    }

    async fn master_of(&self, slot: u16) -> usize {
        eventually("the slot has a master", async || self.find_master(slot).await).await
    }

    /// Returns the slot of a product's partition.
    async fn slot(&self, shop: &Shop, product: &str) -> u16 {
        for node in &self.nodes {
            if let Ok(slot) = node.try_ask(cmd("CLUSTER").arg("KEYSLOT").arg(position(shop, product))).await {
                return slot;
            }
        }
        panic!("no node answers")
    }

    /// Waits until Redis shows a later position of a product's partition.
    async fn shows_more(&self, shop: &Shop, product: &str, more: impl Future<Output = ()>) {
        let master = self.master_of(self.slot(shop, product).await).await;
        let shown = async || self.nodes[master].ask::<Option<String>>(cmd("GET").arg(position(shop, product))).await;
        let before = shown().await;
        more.await;
        eventually("Redis shows a later position", async || (shown().await? != *before.as_ref()?).then_some(())).await;
    }
}

impl Node {
    async fn try_ask<T: FromRedisValue>(&self, command: &Cmd) -> redis::RedisResult<T> {
        command.query_async(&mut connect_to_redis(&format!("redis://127.0.0.1:{}", self.port)).await?).await
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        self.try_ask(command).await.unwrap()
    }

    async fn set_slot(&self, slot: u16, state: &str, node: &Self) {
        () = self.ask(cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(state).arg(&node.id)).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A failure would only leave files in the temporary folder.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Returns the key of the position that covers a product.
fn position(shop: &Shop, product: &str) -> String {
    let partition = aggregate::partition(AggregateType::Product, product, shop.partitions);
    Keys::new(&shop.prefix).shown("product", partition)
}

/// Moves the slot's keys to another master, one half before `between` and the other half after it.
async fn move_slot(slot: u16, (from, to): (&Node, &Node), between: impl Future<Output = ()>) {
    to.set_slot(slot, "IMPORTING", from).await;
    from.set_slot(slot, "MIGRATING", to).await;
    let migrate = async |count: usize| {
        let keys: Vec<String> = from.ask(cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(count)).await;
        if !keys.is_empty() {
            let mut migrate = cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(to.port).arg("").arg(0).arg(5000).arg("REPLACE").arg("KEYS").arg(&keys);
            let _: String = from.ask(&migrate).await;
        }
        keys.len()
    };
    let all: usize = from.ask(cmd("CLUSTER").arg("COUNTKEYSINSLOT").arg(slot)).await;
    assert!(migrate(all / 2).await > 0, "the slot has keys");
    between.await;
    while migrate(100).await > 0 {}
    for node in [to, from] {
        node.set_slot(slot, "NODE", to).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_die_and_slots_move_and_no_token_is_answered_with_less() {
    let shop = Shop::with_views(12).await;
    let mut cluster = Cluster::start(&shop.prefix).await;
    let shop = Frozen::of(Shop { redis_url: cluster.url(), ..shop }).await;
    let mut crowd = Crowd::of(&shop).await;
    let slot = cluster.slot(&shop.shop, "watched-0").await;
    cluster.shows_more(&shop.shop, "watched-0", crowd.goes_on()).await;

    let metrics = shop.projector.admin_client().get("/metrics").await.text;
    // A counter is not exported before its first increment.
    assert!(
        !metrics.contains("\nstampede_cache_failures_total "),
        "Redis failed although all masters are up: {metrics}"
    );

    // The log's end is published there, too, so a token beyond it is refused at once.
    let token = shop.register("told").await;
    let (place, offset) = token.rsplit_once('-').unwrap();
    let ahead = format!("{place}-{}", offset.parse::<u64>().unwrap() + 1_000_000);
    let asked = [("consistency-token", ahead.as_str()), ("prefer", "wait=10")];
    shop.queries.get_with("/v1/products/told", &asked).await.problem(400, "token-ahead", "token");

    let from = cluster.master_of(slot).await;
    let to = (0..MASTERS).find(|place| *place != from).unwrap();
    move_slot(slot, (&cluster.nodes[from], &cluster.nodes[to]), crowd.goes_on()).await;
    cluster.shows_more(&shop.shop, "watched-0", crowd.goes_on()).await;

    // The master's replica takes over.
    cluster.nodes[to].child.kill().await.unwrap();
    crowd.goes_on().await;
    let successor = cluster.master_of(slot).await;
    assert_ne!(successor, to);
    cluster.shows_more(&shop.shop, "watched-0", crowd.goes_on()).await;

    shop.audit().await;

    let config = projector::Config::from_env(&shop.shop.env([])).unwrap();
    let wish = Options { views: vec!["product".to_owned()], ..Options::default() };
    let rebuilt = rebuild(&config, &wish, |_| ()).await.unwrap();
    assert!(rebuilt[0].copied >= 4, "no row was copied to the new generation: {rebuilt:?}");
    cluster.shows_more(&shop.shop, "watched-0", crowd.goes_on()).await;

    // This master has no replica left. Rows on other masters are still shown.
    cluster.nodes[successor].child.kill().await.unwrap();
    crowd.goes_on().await;
    assert_eq!(cluster.find_master(slot).await, None);
    let mut elsewhere = (0..).map(|number| format!("elsewhere-{number}"));
    let elsewhere = loop {
        let product = elsewhere.next().unwrap();
        if cluster.find_master(cluster.slot(&shop.shop, &product).await).await.is_some() {
            break product;
        }
    };
    let mut token = String::new();
    cluster.shows_more(&shop.shop, &elsewhere, async { token = shop.register(&elsewhere).await }).await;
    crowd.end().await;
    given_by_redis(&shop.query_api.admin_client(), &shop.queries, &elsewhere, &token).await;
}
