//! Redis far ahead of Postgres: by as much as is allowed.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use futures_util::stream;
use redis::AsyncTypedCommands as _;
use schemas::cache::{Keys, Shown};
use serde_json::{Value, json};

use crate::ahead::Frozen;
use crate::fixture::{Answer, batch_line, eventually};

/// Commands that are sent together.
const LINES: usize = 2_500;
/// Queries that are asked at the same time.
const AT_ONCE: usize = 16;

/// Products that are registered while the projector's Postgres is frozen.
struct Products {
    shop: Frozen,
    /// By number: partition, offset, and the token that names both.
    written: Vec<(u32, i64, String)>,
}

impl Products {
    /// Registers so many.
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

    /// Returns the answer for a product under its token.
    async fn get(&self, n: usize, wait: &str) -> Answer {
        self.shop.get(&format!("/v1/products/{}", key(n)), &self.written[n].2, wait).await
    }

    /// Returns up to where Redis shows them in each partition, and how many that are.
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

    /// Tells whether one was registered before these ends of its partition.
    fn is_before(&self, n: usize, ends: &BTreeMap<u32, i64>) -> bool {
        let (partition, offset, _) = self.written[n];
        ends.get(&partition).is_some_and(|end| offset <= *end)
    }

    /// Waits until Redis is ahead of Postgres, which is frozen, by as much as may be. Returns how many rows that are.
    async fn stand_still(&self) -> usize {
        let (mut ends, _) = self.shown().await;
        eventually("folding waits", async || {
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

    /// Names everything that was written.
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
    /// Of its name alone.
    const ROW_BYTES: usize = 2_000;
    /// Folding waits behind 8 MiB that are to be committed next, of which the last batch may go beyond; and the first
    /// batch, which is being committed. A batch has 4 MiB.
    const AHEAD_BYTES: usize = (8 + 4 + 4) * 1024 * 1024;
    const { assert!(ROWS * ROW_BYTES > AHEAD_BYTES) };
    let shop = Frozen::new().await;
    shop.postgres.freeze();
    let data = json!({ "name": "\u{1f4a5}".repeat(ROW_BYTES / 4), "price_cents": 5, "stock": 100 });
    let products = Products::send(shop, ROWS, data).await;
    let ahead = products.stand_still().await;
    assert!((1..=AHEAD_BYTES / ROW_BYTES).contains(&ahead), "{ahead} rows are ahead");
    let (_, before) = products.shown().await;
    products.shop.postgres.thaw();
    eventually("folding goes on", async || (products.shown().await.1 > before).then_some(())).await;
    // Once more: now the log has it all, and memory is full before the time is over.
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
