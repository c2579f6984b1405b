//! While Postgres is unresponsive, a projector folds rows that it does not hold in memory onto the rows in Redis. It
//! commits the result only if Postgres has the same row.

use redis::AsyncTypedCommands as _;
use schemas::aggregate::AggregateType;
use schemas::cache::value;
use schemas::views::row_body;
use serde_json::json;

use crate::ahead::Frozen;
use crate::fixture::eventually;

const STORED: &str = "SELECT (data->>'stock')::bigint FROM product_rows WHERE key = 'cd'";

/// A shop whose projector has been restarted, so that it does not hold the product in memory.
struct Forgetful {
    shop: Frozen,
    /// Redis key of the product's row.
    row: String,
}

impl Forgetful {
    async fn new() -> Self {
        let mut shop = Frozen::new().await;
        shop.start_projector_again().await;
        let token = shop.register("other").await;
        shop.queries.is_stored(&token).await;
        let row = row(&shop).await;
        Self { shop, row }
    }

    async fn version(&self) -> u64 {
        let value = self.shop.shop.redis().await.get(&self.row).await.unwrap().unwrap();
        value.split_once('\n').unwrap().0.parse().unwrap()
    }

    /// Overwrites the product's row in Redis.
    async fn put(&self, version: u64, stock: u64) {
        let data = json!({
            "name": "A", "price_cents": 5, "stock": stock, "available": stock, "reserved": 0, "sold": 0, "discontinued": false,
        });
        let value = value(version, &[], row_body("cd", version, &data.to_string()).as_bytes());
        self.shop.shop.redis().await.set(&self.row, value).await.unwrap();
    }

    /// Restocks the product while Postgres is frozen and Redis lacks a row to fold on. Asserts that the result is shown
    /// only after Postgres is back.
    async fn waits_for_postgres(&self) {
        self.shop.postgres.freeze();
        let token = self.shop.restock("cd").await;
        let answer = self.shop.get("/v1/products/cd", &token, "wait=1").await;
        assert_eq!(answer.status, 503, "{answer:?}");
        self.shop.postgres.thaw();
        assert_eq!(self.shop.stock("cd", &token).await, 101);
        self.shop.audit().await;
    }
}

async fn row(shop: &Frozen) -> String {
    shop.shop.row_in_redis(AggregateType::Product, "cd").await
}

#[tokio::test]
async fn a_row_that_only_redis_has_is_folded_on_and_shown_while_postgres_is_frozen() {
    let Forgetful { shop, row: before } = Forgetful::new().await;
    shop.postgres.freeze();
    for stock in 101..=103 {
        let token = shop.restock("cd").await;
        assert_eq!(shop.stock("cd", &token).await, stock);
    }
    assert_eq!(shop.shop.sql(STORED).await, Some(100));
    shop.postgres.thaw();
    let token = shop.restock("cd").await;
    shop.queries.is_stored(&token).await;
    assert_eq!(shop.shop.sql(STORED).await, Some(104));
    assert_eq!(row(&shop).await, before, "the incarnation changed");
    shop.audit().await;
}

#[tokio::test]
async fn another_row_in_redis_than_in_postgres_is_never_committed_and_ends_its_incarnation() {
    let forgetful = Forgetful::new().await;
    forgetful.put(forgetful.version().await, 500).await;
    let Forgetful { shop, row: before } = forgetful;
    shop.postgres.freeze();
    let token = shop.restock("cd").await;
    assert_eq!(shop.stock("cd", &token).await, 501, "not folded on the row in Redis");
    let later = shop.restock("cd").await;
    assert_eq!(shop.stock("cd", &later).await, 502);
    shop.postgres.thaw();
    shop.queries.is_stored(&later).await;
    assert_eq!(shop.shop.sql(STORED).await, Some(102));
    eventually("Redis shows the row that the log yields", async || {
        (shop.stock("cd", &later).await == 102).then_some(())
    })
    .await;
    assert_ne!(row(&shop).await, before, "no new incarnation has begun");
    shop.audit().await;
}

#[tokio::test]
async fn nothing_is_folded_on_an_older_row_in_redis() {
    let forgetful = Forgetful::new().await;
    forgetful.put(0, 50).await;
    forgetful.waits_for_postgres().await;
}

#[tokio::test]
async fn a_row_that_redis_lacks_waits_for_postgres() {
    let forgetful = Forgetful::new().await;
    forgetful.shop.shop.redis().await.del(&forgetful.row).await.unwrap();
    forgetful.waits_for_postgres().await;
}
