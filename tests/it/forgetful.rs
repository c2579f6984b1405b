//! A Redis that loses keys, or restarts with old data, changes no answer to a query with a token.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use redis::AsyncTypedCommands as _;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tokio::process::{Child, Command};

use crate::fixture::{Answer, Shop, batch_line, connect_to_redis, eventually, free_addr};
use crate::projectors::{Orders, active};

/// Interval between two deleted keys or two killed connections, long enough for a busy machine.
const PACE: Duration = Duration::from_millis(3);

async fn keys(redis: &mut MultiplexedConnection, shop: &Shop) -> Vec<String> {
    redis.keys(format!("{{{}:*", shop.prefix)).await.unwrap()
}

/// A Redis server of the test's own. It is killed when dropped.
struct OwnRedis {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl OwnRedis {
    /// Starts a server that the shop's services use from now on.
    async fn of(shop: &mut Shop) -> Self {
        let dir = std::env::temp_dir().join(format!("stampede-{}", shop.prefix));
        let redis = Self::start(dir, free_addr().port()).await;
        shop.redis_url = redis.url();
        redis
    }

    async fn start(dir: PathBuf, port: u16) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--dir"]).arg(&dir);
        let child = command.stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let started = Self { child, dir, port };
        eventually("Redis answers", async || started.ask("PING").await.ok()).await;
        started
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sends a command with its arguments, separated by blanks.
    async fn ask(&self, words: &str) -> redis::RedisResult<()> {
        let mut redis = connect_to_redis(&self.url()).await?;
        let mut words = words.split(' ');
        redis::cmd(words.next().unwrap_or_default()).arg(words.collect::<Vec<_>>()).query_async(&mut redis).await
    }

    /// Kills the server and starts it with its last dump.
    async fn restart(mut self) -> Self {
        self.child.kill().await.unwrap();
        Self::start(self.dir.clone(), self.port).await
    }
}

#[tokio::test]
async fn a_restart_with_an_old_dump_shows_nothing_that_was_changed_since() {
    let mut shop = Shop::with_views(3).await;
    let redis = OwnRedis::of(&mut shop).await;
    let mut orders = Orders::new(&shop).await;
    let _projector = shop.projector().await;
    orders.place("before", 3).await;
    redis.ask("SAVE").await.unwrap();
    orders.place("since", 3).await;
    let redis = redis.restart().await;
    orders.all_shown().await;
    orders.place("after", 3).await;
    orders.all_shown().await;
    std::fs::remove_dir_all(&redis.dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_that_are_lost_again_and_again_delay_no_answer() {
    let mut shop = Shop::with_views(3).await;
    let redis = OwnRedis::of(&mut shop).await;
    let mut orders = Orders::new(&shop).await;
    let _projector = shop.projector().await;
    orders.place("before", 3).await;
    let cuts = Arc::new(AtomicU32::new(0));
    let cutting = tokio::spawn({
        let (cuts, mut redis) = (cuts.clone(), connect_to_redis(&redis.url()).await.unwrap());
        async move {
            let mut kill = redis::cmd("CLIENT");
            kill.arg(&["KILL", "TYPE", "pubsub"]);
            loop {
                cuts.fetch_add(kill.query_async::<u32>(&mut redis).await.unwrap(), Ordering::Relaxed);
                tokio::time::sleep(PACE).await;
            }
        }
    });
    for round in 0.. {
        orders.place(&format!("cut-{round}"), 5).await;
        if cuts.load(Ordering::Relaxed) > 10 {
            break;
        }
    }
    orders.all_shown().await;
    cutting.abort();
    std::fs::remove_dir_all(&redis.dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_vanish_at_any_moment_hide_nothing() {
    let shop = Shop::with_views(3).await;
    let mut orders = Orders::new(&shop).await;
    let (_one, _other) = (shop.projector().await, shop.projector().await);
    let is_over = Arc::new(AtomicBool::new(false));
    let evicting = tokio::spawn({
        let (shop, is_over, mut redis) = (shop.clone(), is_over.clone(), shop.redis().await);
        async move {
            let mut evicted = 0_usize;
            while !is_over.load(Ordering::Relaxed) {
                // Rows and positions alternate.
                let keys = keys(&mut redis, &shop).await;
                if let Some(key) = keys.get(evicted * 7919 % keys.len().max(1)) {
                    redis.del(key).await.unwrap();
                    evicted += 1;
                }
                tokio::time::sleep(PACE).await;
            }
            evicted
        }
    });
    orders.place("evicted", 60).await;
    is_over.store(true, Ordering::Relaxed);
    assert!(evicting.await.unwrap() > 60);
    orders.all_shown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_vanishes_under_load_costs_the_rows_of_its_view_and_partition_alone() {
    let shop = Shop::with_views(4).await;
    let mut orders = Orders::new(&shop).await;
    let projectors = [(); 4].map(|()| shop.projector());
    let projectors = futures_util::future::join_all(projectors).await;
    active(4, &projectors.iter().collect::<Vec<_>>()).await;
    orders.place("before", 5).await;
    let begun = async || {
        let mut begun = 0;
        for projector in &projectors {
            let metrics = projector.admin_client().get("/metrics").await.text;
            let line = metrics.lines().find_map(|line| line.strip_prefix("stampede_incarnations_total "));
            begun += line.map_or(0, |count| count.parse::<u32>().unwrap());
        }
        begun
    };
    let before = begun().await;
    let mut redis = shop.redis().await;
    let positions = redis.keys(format!("{{{}:2}}:order", shop.prefix)).await.unwrap();
    assert_eq!(redis.del(&positions).await.unwrap(), 1, "{positions:?}");
    orders.place("after", 40).await;
    orders.all_shown().await;
    eventually("a new incarnation has begun", async || (begun().await > before).then_some(())).await;
    assert_eq!(begun().await - before, 1);
}

#[tokio::test]
async fn a_redis_that_may_evict_positions_or_is_a_replica_is_reported() {
    let mut shop = Shop::with_views(2).await;
    let redis = OwnRedis::of(&mut shop).await;
    redis.ask("CONFIG SET maxmemory 100000000 maxmemory-policy allkeys-lru").await.unwrap();
    let projector = shop.start_projector();
    let tells = async |what: Option<&str>| {
        eventually("readyz reports the condition", async || {
            let answer = projector.admin_client().get("/readyz").await;
            let is_told = what.map_or(answer.status == 200, |what| answer.text.contains(what));
            is_told.then_some(())
        })
        .await;
    };
    tells(Some("may evict positions")).await;
    redis.ask("CONFIG SET maxmemory-policy noeviction").await.unwrap();
    tells(Some("is noeviction")).await;
    redis.ask("CONFIG SET maxmemory-policy volatile-lru").await.unwrap();
    tells(None).await;
    redis.ask("REPLICAOF 127.0.0.1 1").await.unwrap();
    tells(Some("names a replica")).await;
    std::fs::remove_dir_all(&redis.dir).unwrap();
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_keeps_no_answer_old() {
    let mut shop = Shop::with_views(3).await;
    let redis = OwnRedis::of(&mut shop).await;
    let (command_api, _projector) = (shop.command_api().await, shop.projector().await);
    let query_api = shop.query_api().await;
    let (commands, queries) = (command_api.client(), query_api.client());
    let product = json!({ "name": "A", "price_cents": 5, "stock": 1 });
    let mut token = commands.post("/v1/products/cd/register", product).await.token();
    let answered_by_redis = async || {
        let metrics = query_api.admin_client().get("/metrics").await.text;
        let line = metrics.lines().find(|line| line.contains("origin=\"redis\",view=\"product\""))?.to_owned();
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    let answers_come_from_redis = async |token: &str| {
        let before = answered_by_redis().await;
        eventually("answers come from Redis", async || {
            queries.get_with("/v1/products/cd", &[("consistency-token", token), ("prefer", "wait=10")]).await;
            (answered_by_redis().await > before).then_some(())
        })
        .await;
    };
    answers_come_from_redis(&token).await;
    for (round, copies) in [(1, 1), (2, 1), (3, 0), (4, 0)] {
        // Like a Redis whose disk is full or that became a replica: it serves reads and refuses writes.
        redis.ask(&format!("CONFIG SET min-replicas-to-write {copies}")).await.unwrap();
        let restocked = commands.post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
        token = restocked.accepted(&["product.restocked.v1"]).token();
        let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
        let stock = |answer: &Answer| answer.json()["data"]["stock"].clone();
        assert_eq!(stock(&queries.get_with("/v1/products/cd", &fresh).await), 1 + round);
        eventually("the change is shown without a token", async || {
            (stock(&queries.get("/v1/products/cd").await) == 1 + round).then_some(())
        })
        .await;
    }
    answers_come_from_redis(&token).await;
    std::fs::remove_dir_all(&redis.dir).unwrap();
}

/// Returns a number that the server reports about itself.
async fn told(redis: &mut MultiplexedConnection, section: &str, name: &str) -> Option<u64> {
    let info: String = redis::cmd("INFO").arg(section).query_async(redis).await.unwrap();
    let value = info.lines().find_map(|line| line.strip_prefix(name))?;
    value.split(|letter: char| !letter.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_full_and_evicts_nothing_shows_no_row_that_is_older_than_its_token() {
    const PRODUCTS: usize = 300;
    let mut shop = Shop::with_views(2).await;
    let own = OwnRedis::of(&mut shop).await;
    let (command_api, _projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    let lines = |command, data: serde_json::Value| -> Vec<_> {
        (0..PRODUCTS).map(|n| batch_line("products", &format!("cd-{n}"), command, data.clone())).collect()
    };
    let product = json!({ "name": "A".repeat(200), "price_cents": 5, "stock": 1 });
    commands.batch(&lines("register", product)).await;
    let mut redis = connect_to_redis(&own.url()).await.unwrap();
    own.ask("CONFIG SET maxmemory-policy noeviction").await.unwrap();
    for _ in 0..5 {
        // Some rows of a batch fit into memory, but not all.
        let used = told(&mut redis, "memory", "used_memory:").await.unwrap();
        own.ask(&format!("CONFIG SET maxmemory {}", used + 20_000)).await.unwrap();
        for answer in commands.batch(&lines("restock", json!({ "quantity": 1 }))).await {
            let (id, token) = (answer["id"].as_str().unwrap(), answer["token"].as_str().unwrap());
            let headers = [("consistency-token", token), ("prefer", "wait=10")];
            let row = queries.get_with(&format!("/v1/products/{id}"), &headers).await;
            assert_eq!(row.status, 200, "{row:?}");
            assert_eq!(row.json()["version"], answer["version"], "{id} under {token}");
        }
    }
    let refused = told(&mut redis, "errorstats", "errorstat_OOM:count=").await;
    assert!(refused.is_some_and(|count| count > 0), "Redis had room for everything");
    std::fs::remove_dir_all(&own.dir).unwrap();
}
