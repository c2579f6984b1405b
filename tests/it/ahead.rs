//! Redis shows rows before Postgres has them, and nobody is told less, or something else, because of it.

use std::sync::Arc;

use redis::AsyncTypedCommands as _;
use schemas::cache::{Keys, Shown};
use serde_json::{Value, json};

use crate::fixture::{Answer, Client, Proxy, Service, Shop, eventually};

/// A shop whose projector has a Postgres that can be frozen; that of all others goes on.
struct Frozen {
    shop: Shop,
    postgres: Arc<Proxy>,
    projector: Service,
    commands: Client,
    queries: Client,
    query_api: Service,
    _command_api: Service,
}

impl Frozen {
    /// With a product whose stock is 100.
    async fn new() -> Self {
        let shop = Shop::with_views(2).await;
        let mut seen = shop.clone();
        let postgres = Proxy::in_url(&mut seen.postgres_url).await;
        postgres.restore().await;
        let (command_api, projector, query_api) =
            (shop.command_api().await, seen.projector().await, shop.query_api().await);
        let (commands, queries) = (command_api.client(), query_api.client());
        let shop = Self { shop, postgres, projector, commands, queries, query_api, _command_api: command_api };
        let token = shop.register("cd").await;
        assert_eq!(shop.stock("cd", &token).await, 100);
        shop.is_stored(&token).await;
        shop
    }

    /// With a product whose stock is 100 in Postgres, which is frozen, and 101 in Redis; and the token that names that.
    async fn ahead() -> (Self, String) {
        let shop = Self::new().await;
        shop.postgres.freeze();
        let token = shop.restock("cd").await;
        assert_eq!(shop.stock("cd", &token).await, 101);
        (shop, token)
    }

    async fn register(&self, key: &str) -> String {
        let product = json!({ "name": "A", "price_cents": 5, "stock": 100 });
        let path = format!("/v1/products/{key}/register");
        self.commands.post(&path, product).await.accepted(&["product.registered.v1"]).token()
    }

    async fn restock(&self, key: &str) -> String {
        let path = format!("/v1/products/{key}/restock");
        self.commands.post(&path, json!({ "quantity": 1 })).await.accepted(&["product.restocked.v1"]).token()
    }

    async fn get(&self, path: &str, token: &str, wait: &str) -> Answer {
        self.queries.get_with(path, &[("consistency-token", token), ("prefer", wait)]).await
    }

    async fn stock(&self, key: &str, token: &str) -> Value {
        let answer = self.get(&format!("/v1/products/{key}"), token, "wait=10").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"]["stock"].clone()
    }

    /// Waits until Postgres shows what the token names.
    async fn is_stored(&self, token: &str) {
        eventually("Postgres has it", async || {
            (self.get("/v1/views/product", token, "wait=5").await.status == 200).then_some(())
        })
        .await;
    }

    async fn incarnations(&self) -> String {
        let metrics = self.projector.admin_client().get("/metrics").await.text;
        metrics.lines().find(|line| line.starts_with("stampede_incarnations_total")).unwrap_or_default().to_owned()
    }

    /// Forgets a row in Redis.
    async fn forget(&self, key: &str) {
        let mut redis = self.shop.redis().await;
        let rows = redis.keys(format!("{{{}:*:product:{key}", self.shop.prefix)).await.unwrap();
        assert_eq!(redis.del(&rows).await.unwrap(), rows.len(), "{rows:?}");
    }

    async fn audit(&self) {
        let config = projector::Config::from_env(&self.shop.env([])).unwrap();
        assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, []);
    }
}

#[tokio::test]
async fn rows_are_shown_while_postgres_is_frozen_and_who_needs_postgres_waits_for_it() {
    let (shop, token) = Frozen::ahead().await;
    // A list and a history need Postgres.
    for path in ["/v1/views/product", "/v1/products/cd/history", "/v1/products/cd/as-of?version=1"] {
        assert_eq!(shop.get(path, &token, "wait=0").await.status, 503, "{path}");
    }
    shop.postgres.thaw();
    for path in ["/v1/views/product", "/v1/products/cd/history", "/v1/products/cd/as-of?version=1"] {
        assert_eq!(shop.get(path, &token, "wait=10").await.status, 200, "{path}");
    }
    shop.audit().await;
}

#[tokio::test]
async fn a_row_that_redis_lacks_is_not_answered_by_a_postgres_that_is_behind() {
    let (shop, token) = Frozen::ahead().await;
    shop.forget("cd").await;
    assert_eq!(shop.get("/v1/products/cd", &token, "wait=0").await.status, 503);
    // Readers who name nothing are given the row of before, which is not put into Redis.
    assert_eq!(shop.queries.get("/v1/products/cd").await.json()["data"]["stock"], 100);
    assert_eq!(shop.get("/v1/products/cd", &token, "wait=0").await.status, 503);
    shop.postgres.thaw();
    assert_eq!(shop.stock("cd", &token).await, 101);
    shop.audit().await;
}

#[tokio::test]
async fn folding_waits_for_a_postgres_that_is_too_far_behind_and_goes_on_with_it() {
    let shop = Frozen::new().await;
    shop.postgres.freeze();
    let mut expected = 100;
    let last = eventually("folding waits", async || {
        expected += 1;
        let token = shop.restock("cd").await;
        (shop.get("/v1/products/cd", &token, "wait=1").await.status == 503).then_some(token)
    })
    .await;
    shop.postgres.thaw();
    assert_eq!(shop.stock("cd", &last).await, expected);
    shop.is_stored(&last).await;
    shop.audit().await;
}

#[tokio::test]
async fn an_incarnation_that_begins_behind_gets_what_was_shown_since() {
    let (shop, token) = Frozen::ahead().await;
    let mut redis = shop.shop.redis().await;
    let all = redis.keys(format!("{{{}:*", shop.shop.prefix)).await.unwrap();
    redis.del(&all).await.unwrap();
    shop.postgres.thaw();
    // In order: the row of the second product moves the position past the first one's.
    let later = shop.register("other").await;
    assert_eq!(shop.stock("cd", &format!("{token},{later}")).await, 101);
    shop.is_stored(&later).await;
    assert_eq!(shop.stock("cd", &later).await, 101);
    shop.audit().await;
}

#[tokio::test]
async fn a_successor_goes_on_from_where_redis_is_ahead() {
    let (mut shop, _) = Frozen::ahead().await;
    let successor = shop.shop.start_projector();
    std::mem::replace(&mut shop.projector, successor).crash().await;
    shop.projector.wait_ready().await;
    let later = shop.restock("cd").await;
    assert_eq!(shop.stock("cd", &later).await, 102);
    shop.is_stored(&later).await;
    assert_eq!(shop.incarnations().await, "", "no row was declared stale");
    shop.audit().await;
}

#[tokio::test]
async fn a_position_of_records_that_the_log_does_not_have_is_not_believed() {
    let shop = Frozen::new().await;
    let Frozen { shop, projector, commands, .. } = shop;
    projector.stop().await;
    // As a log that lost its last records leaves it: rows that came of others.
    let (keys, mut redis) = (Keys::new(&shop.prefix), shop.redis().await);
    for partition in 0..shop.partitions {
        let position = keys.shown("product", partition);
        let Some(shown) = redis.get(&position).await.unwrap().as_deref().and_then(Shown::parse) else { continue };
        let ahead = Shown { offset: shown.offset + 1, hash: Some(1), ..shown };
        redis.set(&position, ahead.to_string()).await.unwrap();
        let row =
            keys.row(partition, shown.making.incarnation, schemas::feeds::StoredView::named("product").unwrap(), "cd");
        let lost = b"{\"key\":\"cd\",\"version\":2,\"data\":{\"stock\":999}}";
        redis.set(&row, schemas::cache::value(2, &[], lost)).await.unwrap();
    }
    let restocked = commands.post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
    let token = restocked.accepted(&["product.restocked.v1"]).token();
    let (_projector, query_api) = (shop.projector().await, shop.query_api().await);
    eventually("the row is the log's", async || {
        let headers = [("consistency-token", token.as_str()), ("prefer", "wait=5")];
        let answer = query_api.client().get_with("/v1/products/cd", &headers).await;
        (answer.status == 200 && answer.json()["data"]["stock"] == 101).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_row_that_postgres_refuses_after_it_was_shown_is_taken_back() {
    let shop = Frozen::new().await;
    let refuse = "ALTER TABLE product_rows ADD CONSTRAINT poison CHECK (key <> 'cd') NOT VALID";
    shop.shop.sql(refuse).await;
    let token = shop.restock("cd").await;
    eventually("it is parked", async || {
        let answer = shop.get("/v1/products/cd", &token, "wait=5").await;
        (answer.header("stampede-parked") == Some("true") && answer.json()["data"]["stock"] == 100).then_some(())
    })
    .await;
    let later = shop.register("other").await;
    assert_eq!(shop.stock("other", &later).await, 100);
    assert_eq!(shop.stock("cd", &later).await, 100);
    shop.shop.sql("ALTER TABLE product_rows DROP CONSTRAINT poison").await;
    let retried = shop.projector.admin_client().post("/parked/product/product/cd/retry", json!({})).await;
    assert_eq!(retried.status, 204, "{retried:?}");
    assert_eq!(shop.stock("cd", &token).await, 101);
    let last = shop.restock("cd").await;
    assert_eq!(shop.stock("cd", &last).await, 102);
    shop.audit().await;
    drop(shop.query_api);
}
