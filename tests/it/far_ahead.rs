//! Redis far ahead of Postgres: by as much as is allowed, and by rows that Postgres then refuses.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use futures_util::stream;
use redis::AsyncTypedCommands as _;
use schemas::aggregate::{AggregateType, partition};
use schemas::cache::{Keys, Shown};
use serde_json::{Value, json};

use crate::ahead::{Crowd, Frozen};
use crate::fixture::{Answer, Service, batch_line, eventually};

/// Number of commands in a batch.
const LINES: usize = 2_500;
/// Number of concurrent queries.
const AT_ONCE: usize = 16;

/// Products that are registered while the projector's Postgres is frozen.
struct Products {
    shop: Frozen,
    /// Partition, offset and token of each registration, indexed by number.
    written: Vec<(u32, i64, String)>,
}

impl Products {
    /// Registers `count` products.
    async fn send(shop: Frozen, count: usize, data: Value) -> Self {
        let mut written = Vec::new();
        for first in (0..count).step_by(LINES) {
            let numbers = first..count.min(first + LINES);
            let lines: Vec<_> = numbers.map(|n| batch_line("products", &key(n), "register", data.clone())).collect();
            let answers = shop.commands.batch(&lines).await;
            written.extend(answers.iter().map(|answer| {
                assert_eq!(answer["status"], 200, "{answer}");
                place(answer["token"].as_str().unwrap())
            }));
        }
        Self { shop, written }
    }

    /// Queries a product with its token.
    async fn get(&self, n: usize, wait: &str) -> Answer {
        self.shop.get(&format!("/v1/products/{}", key(n)), &self.written[n].2, wait).await
    }

    /// Returns the offset up to which Redis shows each partition, and the number of products shown.
    async fn shown(&self) -> (BTreeMap<u32, i64>, usize) {
        let shop = &self.shop.shop;
        let (keys, mut redis, mut ends) = (Keys::new(&shop.prefix), shop.redis().await, BTreeMap::new());
        for partition in 0..shop.partitions {
            let position = redis.get(keys.shown("product", partition)).await.unwrap();
            ends.extend(position.as_deref().and_then(Shown::parse).map(|shown| (partition, shown.offset)));
        }
        let count = (0..self.written.len()).filter(|n| self.is_before(*n, &ends)).count();
        (ends, count)
    }

    /// Returns whether a registration is below these ends of the partitions.
    fn is_before(&self, n: usize, ends: &BTreeMap<u32, i64>) -> bool {
        let (partition, offset, _) = self.written[n];
        ends.get(&partition).is_some_and(|end| offset <= *end)
    }

    /// Waits until Redis is as far ahead of the frozen Postgres as allowed, and returns the number of rows that it is
    /// ahead.
    async fn stand_still(&self) -> usize {
        let (mut ends, _) = self.shown().await;
        eventually("folding waits for Postgres", async || {
            let next = (0..self.written.len()).find(|n| !self.is_before(*n, &ends));
            let waits = match next {
                Some(next) => self.get(next, "wait=5").await.status == 503,
                None => true,
            };
            let (before, now) = (std::mem::take(&mut ends), self.shown().await.0);
            ends = now;
            (waits && ends == before).then_some(())
        })
        .await;
        for n in (0..self.written.len()).step_by(100) {
            let expected = if self.is_before(n, &ends) { 200 } else { 503 };
            assert_eq!(self.get(n, "wait=0").await.status, expected, "{n}");
        }
        let stored = self.shop.shop.sql("SELECT count(*) FROM product_rows WHERE key LIKE 'far-%'").await.unwrap();
        self.shown().await.1 - usize::try_from(stored).unwrap()
    }

    /// Returns a token that covers everything written.
    fn last_token(&self) -> String {
        let mut last = BTreeMap::new();
        for (partition, offset, token) in &self.written {
            let known = last.entry(*partition).or_insert((*offset, token));
            *known = (*known).max((*offset, token));
        }
        last.into_values().map(|(_, token)| token.as_str()).collect::<Vec<_>>().join(",")
    }
}

fn key(n: usize) -> String {
    format!("far-{n}")
}

fn place(token: &str) -> (u32, i64, String) {
    let (partition, offset) = token.split_once('.').unwrap().1.split_once('-').unwrap();
    (partition.parse().unwrap(), offset.parse().unwrap(), token.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_new_rows_redis_shows_as_many_as_may_be_ahead_and_all_once_postgres_goes_on() {
    const ROWS: usize = 10_000;
    /// Size of a row's name alone.
    const ROW_BYTES: usize = 2_000;
    /// Folding waits once 4 MiB are queued for the next commit, which the last batch may exceed, behind the first
    /// batch, which is being committed. A batch has 2 MiB.
    const AHEAD_BYTES: usize = (4 + 2 + 2) * 1024 * 1024;
    const { assert!(ROWS * ROW_BYTES > AHEAD_BYTES) };
    let shop = Frozen::new().await;
    shop.postgres.freeze();
    let data = json!({ "name": "\u{1f4a5}".repeat(ROW_BYTES / 4), "price_cents": 5, "stock": 100 });
    let products = Products::send(shop, ROWS, data).await;
    let ahead = products.stand_still().await;
    assert!((1..=AHEAD_BYTES / ROW_BYTES).contains(&ahead), "{ahead} rows are ahead");
    let (_, before) = products.shown().await;
    products.shop.postgres.thaw();
    eventually("folding continues", async || (products.shown().await.1 > before).then_some(())).await;
    // Once more: now the log already has everything, so the memory limit is reached before the time limit.
    products.shop.postgres.freeze();
    products.stand_still().await;
    products.shop.postgres.thaw();
    let token = products.last_token();
    products.shop.queries.is_stored(&token).await;
    let answers = (0..ROWS).step_by(10).map(async |n| (n, products.get(n, "wait=30").await));
    let mut answers = stream::iter(answers).buffer_unordered(AT_ONCE);
    while let Some((n, answer)) = answers.next().await {
        assert_eq!((answer.status.as_u16(), &answer.json()["data"]["stock"]), (200, &json!(100)), "{n}: {answer:?}");
    }
    let (mut listed, mut page) = (0, "/v1/views/product?limit=1000".to_owned());
    loop {
        let answer = products.shop.get(&page, &token, "wait=30").await.json();
        let rows = answer["rows"].as_array().unwrap();
        listed += rows.iter().filter(|row| row["key"].as_str().unwrap().starts_with("far-")).count();
        let Some(after) = answer["next"].as_str() else { break };
        page = format!("/v1/views/product?limit=1000&after={after}");
    }
    assert_eq!(listed, ROWS);
    products.shop.audit().await;
}

impl Frozen {
    async fn refuse(&self, check: &str) {
        let refuse = format!("ALTER TABLE product_rows ADD CONSTRAINT poison CHECK ({check}) NOT VALID");
        self.shop.sql(&refuse).await;
    }

    async fn accept(&self) {
        self.shop.sql("ALTER TABLE product_rows DROP CONSTRAINT poison").await;
    }
}

async fn retry(projector: &Service, key: &str) {
    let retried = projector.admin_client().post(&format!("/parked/product/product/{key}/retry"), json!({})).await;
    assert_eq!(retried.status, 204, "{key}: {retried:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_is_refused_rows_that_redis_shows_hides_no_command_and_comes_to_the_logs_end() {
    const ROWS: usize = 400;
    let shop = Frozen::new().await;
    shop.postgres.freeze();
    let data = json!({ "name": "A", "price_cents": 5, "stock": 100 });
    let mut products = Products::send(shop, ROWS, data).await;
    assert_eq!(products.get(0, "wait=10").await.status, 200, "Redis does not show the row");
    let mut crowd = Crowd::of(&products.shop).await;
    let (partition, ..) = products.written[0];
    let other = (ROWS / 2..ROWS).find(|n| products.written[*n].0 == partition).unwrap();
    products.shop.refuse(&format!("key NOT IN ('{}', '{}')", key(0), key(other))).await;
    let stored = format!("SELECT next_offset FROM checkpoints WHERE view = 'product' AND partition = {partition}");
    assert!(products.shop.shop.sql(&stored).await <= Some(products.written[0].1), "Redis is not ahead");

    let successor = products.shop.shop.start_projector();
    std::mem::replace(&mut products.shop.projector, successor).crash().await;
    crowd.goes_on().await;
    products.shop.queries.is_stored(&products.last_token()).await;
    for n in 0..ROWS {
        if n == 0 || n == other {
            products.shop.comes_to_be_parked(&key(n), &products.written[n].2).await;
        } else {
            assert_eq!(products.shop.stock(&key(n), &products.written[n].2).await, 100, "{n}");
        }
    }
    for n in (1..ROWS).step_by(20).filter(|n| *n != other) {
        let token = products.shop.restock(&key(n)).await;
        assert_eq!(products.shop.stock(&key(n), &token).await, 101, "{n}");
    }
    products.shop.accept().await;
    for n in [0, other] {
        retry(&products.shop.projector, &key(n)).await;
        assert_eq!(products.shop.stock(&key(n), &products.written[n].2).await, 100, "{n}");
    }
    crowd.goes_on().await;
    crowd.end().await;
    products.shop.audit().await;
}

#[tokio::test]
async fn rows_that_redis_shows_and_postgres_refuses_after_others_have_changed_some_hide_no_command() {
    let shop = Frozen::new().await;
    let own = partition(AggregateType::Product, "cd", 2);
    let id = |name: &str, wanted: u32| {
        let mut ids = (0..).map(|n| format!("{name}-{n}"));
        ids.find(|id| partition(AggregateType::Product, id, 2) == wanted).unwrap()
    };
    let (near, far, bad) = (&id("near", own), &id("far", 1 - own), &id("bad", 1 - own));
    let registered = [shop.register(near).await, shop.register(far).await, shop.register(bad).await];
    shop.queries.is_stored(&registered.join(",")).await;
    shop.refuse("key <> 'cd'").await;
    let parked = shop.restock("cd").await;
    shop.comes_to_be_parked("cd", &parked).await;
    shop.accept().await;
    // Rows in memory are folded on without Postgres.
    for id in [near, far, bad] {
        let token = shop.restock(id).await;
        shop.queries.is_stored(&token).await;
    }

    shop.refuse(&format!("key <> '{bad}'")).await;
    shop.postgres.freeze();
    // The commit of the first of these comes too late, and so does everything folded after it.
    shop.restock(near).await;
    let lines = [bad, far, near].map(|id| batch_line("products", id, "restock", json!({ "quantity": 1 })));
    let tokens: Vec<_> =
        shop.commands.batch(&lines).await.iter().map(|answer| answer["token"].as_str().unwrap().to_owned()).collect();
    for (id, token, stock) in [(bad, &tokens[0], 102), (far, &tokens[1], 102)] {
        assert_eq!(shop.stock(id, token).await, stock, "{id} in Redis");
    }
    // Retries through a projector without views, whose Postgres is not frozen.
    let operator = Service::projector(&shop.shop.reactor_env("127.0.0.1:1", 600));
    let retried = tokio::spawn(async move { retry(&operator, "cd").await });
    eventually("the parked record is folded", async || {
        (shop.shop.sql("SELECT count(*) FROM parked").await == Some(0)).then_some(())
    })
    .await;
    shop.postgres.thaw();
    retried.await.unwrap();

    shop.comes_to_be_parked(bad, &tokens[0]).await;
    for (id, token, stock) in [(near, &tokens[2], 103), (far, &tokens[1], 102), (&"cd".to_owned(), &parked, 101)] {
        assert_eq!(shop.stock(id, token).await, stock, "{id}");
        let later = shop.restock(id).await;
        assert_eq!(shop.stock(id, &later).await, stock + 1, "{id}");
        shop.queries.is_stored(&later).await;
    }
    shop.accept().await;
    retry(&shop.projector, bad).await;
    assert_eq!(shop.stock(bad, &tokens[0]).await, 102);
    shop.audit().await;
}
