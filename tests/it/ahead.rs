//! Redis shows rows before Postgres has them, and no token is answered with older or other data because of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redis::AsyncTypedCommands as _;
use schemas::cache::{Keys, Shown};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fixture::{Answer, Client, Proxy, Service, Shop, eventually};
use crate::projectors::active;
use crate::query_tier::copy_of_postgres;

/// A shop whose projector reaches Postgres through a proxy that can be frozen. The other services reach Postgres
/// directly.
pub(crate) struct Frozen {
    pub(crate) shop: Shop,
    pub(crate) postgres: Arc<Proxy>,
    /// The shop as the projector sees it, with the proxied Postgres.
    seen: Shop,
    pub(crate) projector: Service,
    pub(crate) commands: Client,
    pub(crate) queries: Client,
    pub(crate) query_api: Service,
    _command_api: Service,
}

impl Frozen {
    pub(crate) async fn new() -> Self {
        Self::of(Shop::with_views(2).await).await
    }

    /// Creates it from a shop and registers a product whose stock is 100.
    pub(crate) async fn of(shop: Shop) -> Self {
        let mut seen = shop.clone();
        let postgres = Proxy::in_url(&mut seen.postgres_url).await;
        postgres.restore().await;
        let (command_api, projector, query_api) =
            (shop.command_api().await, seen.projector().await, shop.query_api().await);
        let (commands, queries) = (command_api.client(), query_api.client());
        let shop = Self { shop, postgres, seen, projector, commands, queries, query_api, _command_api: command_api };
        let token = shop.register("cd").await;
        assert_eq!(shop.stock("cd", &token).await, 100);
        shop.queries.is_stored(&token).await;
        shop
    }

    /// Replaces the running projector by a new one.
    pub(crate) async fn start_projector_again(&mut self) {
        let next = self.seen.start_projector();
        std::mem::replace(&mut self.projector, next).stop().await;
        self.projector.wait_ready().await;
    }

    /// Creates it with a product whose stock is 100 in the frozen Postgres and 101 in Redis, and returns the token of
    /// the latter.
    async fn ahead() -> (Self, String) {
        let shop = Self::new().await;
        shop.postgres.freeze();
        let token = shop.restock("cd").await;
        assert_eq!(shop.stock("cd", &token).await, 101);
        (shop, token)
    }

    pub(crate) async fn register(&self, key: &str) -> String {
        let product = json!({ "name": "A", "price_cents": 5, "stock": 100 });
        let path = format!("/v1/products/{key}/register");
        self.commands.post(&path, product).await.accepted(&["product.registered.v1"]).token()
    }

    pub(crate) async fn restock(&self, key: &str) -> String {
        let path = format!("/v1/products/{key}/restock");
        self.commands.post(&path, json!({ "quantity": 1 })).await.accepted(&["product.restocked.v1"]).token()
    }

    pub(crate) async fn get(&self, path: &str, token: &str, wait: &str) -> Answer {
        self.queries.get_with(path, &[("consistency-token", token), ("prefer", wait)]).await
    }

    pub(crate) async fn stock(&self, key: &str, token: &str) -> Value {
        let answer = self.get(&format!("/v1/products/{key}"), token, "wait=10").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"]["stock"].clone()
    }

    /// Waits until the record that its writer's token names is parked. Its row has been shown until then.
    pub(crate) async fn comes_to_be_parked(&self, key: &str, token: &str) {
        eventually("the record is parked", async || {
            let answer = self.get(&format!("/v1/products/{key}"), token, "wait=5").await;
            (answer.json()["type"] == "/problems/parked").then_some(())
        })
        .await;
    }

    /// Returns the names of a product's rows in Redis, one per incarnation.
    async fn rows(&self, key: &str) -> BTreeSet<String> {
        let rows = self.shop.redis().await.keys(format!("{{{}:*:product:{key}", self.shop.prefix)).await.unwrap();
        rows.into_iter().collect()
    }

    /// Deletes the keys in Redis whose names have this suffix and returns their number.
    async fn forget(&self, end: &str) -> usize {
        let mut redis = self.shop.redis().await;
        let keys = redis.keys(format!("{{{}:*{end}", self.shop.prefix)).await.unwrap();
        if keys.is_empty() { 0 } else { redis.del(&keys).await.unwrap() }
    }

    pub(crate) async fn audit(&self) {
        let config = projector::Config::from_env(&self.shop.env([])).unwrap();
        assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, []);
    }
}

/// Four clients, each of which restocks a product of its own and queries it five times with the token that it received.
/// Each product also has a reader without a token: when Redis lacks a row, that reader's answer comes from Postgres as
/// it is, and may be written back to Redis.
pub(crate) struct Crowd {
    is_over: Arc<AtomicBool>,
    /// Number of rounds of a restock and its queries.
    asked: Arc<AtomicU64>,
    /// Number of queries without a token.
    looked: Arc<AtomicU64>,
    members: JoinSet<()>,
}

impl Crowd {
    pub(crate) async fn of(shop: &Frozen) -> Self {
        let mut crowd =
            Self { is_over: Arc::default(), asked: Arc::default(), looked: Arc::default(), members: JoinSet::new() };
        for member in 0..4 {
            let key = format!("watched-{member}");
            shop.register(&key).await;
            let (queries, path) = (shop.queries.clone(), format!("/v1/products/{key}"));
            let (is_over, looked) = (crowd.is_over.clone(), crowd.looked.clone());
            crowd.members.spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    queries.get(&path).await;
                    looked.fetch_add(1, Ordering::Relaxed);
                }
            });
            let (is_over, asked) = (crowd.is_over.clone(), crowd.asked.clone());
            let (commands, queries, path) =
                (shop.commands.clone(), shop.queries.clone(), format!("/v1/products/{key}"));
            crowd.members.spawn(async move {
                let mut stock = 100;
                while !is_over.load(Ordering::Relaxed) {
                    stock += 1;
                    let restocked = commands.post(&format!("{path}/restock"), json!({ "quantity": 1 })).await;
                    let token = restocked.accepted(&["product.restocked.v1"]).token();
                    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=30")];
                    for _ in 0..5 {
                        let row = queries.get_with(&path, &fresh).await;
                        assert_eq!(
                            (row.status.as_u16(), &row.json()["data"]["stock"]),
                            (200, &json!(stock)),
                            "{row:?}"
                        );
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        crowd
    }

    /// Waits until the clients have completed some more rounds.
    pub(crate) async fn goes_on(&mut self) {
        self.comes_to(60, |crowd| &crowd.asked).await;
    }

    /// Waits until the readers without a token have queried some more times.
    async fn looks_on(&mut self) {
        self.comes_to(100, |crowd| &crowd.looked).await;
    }

    async fn comes_to(&mut self, more: u64, count: impl Fn(&Self) -> &AtomicU64) {
        let wanted = count(self).load(Ordering::Relaxed) + more;
        eventually("the crowd makes progress", async || {
            if let Some(ended) = self.members.try_join_next() {
                ended.expect("no answer is older than its token");
            }
            (count(self).load(Ordering::Relaxed) >= wanted).then_some(())
        })
        .await;
    }

    pub(crate) async fn end(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.members.join_next().await {
            ended.expect("no answer is older than its token");
        }
    }
}

#[tokio::test]
async fn rows_are_shown_while_postgres_is_frozen_and_who_needs_postgres_waits_for_it() {
    let (shop, token) = Frozen::ahead().await;
    // A list and a history are answered by Postgres.
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
    assert_eq!(shop.forget(":product:cd").await, 1);
    assert_eq!(shop.get("/v1/products/cd", &token, "wait=0").await.status, 503);
    // Readers without a token get the old row, which is not written back to Redis.
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
    let last = eventually("folding waits for Postgres", async || {
        expected += 1;
        let token = shop.restock("cd").await;
        (shop.get("/v1/products/cd", &token, "wait=1").await.status == 503).then_some(token)
    })
    .await;
    shop.postgres.thaw();
    assert_eq!(shop.stock("cd", &last).await, expected);
    shop.queries.is_stored(&last).await;
    shop.audit().await;
}

#[tokio::test]
async fn an_incarnation_that_begins_behind_gets_what_was_shown_since() {
    let (shop, token) = Frozen::ahead().await;
    assert!(shop.forget("").await > 0);
    shop.postgres.thaw();
    // Rows are shown in order: the second product's row moves the position past the first one's.
    let later = shop.register("other").await;
    assert_eq!(shop.stock("cd", &format!("{token},{later}")).await, 101);
    shop.queries.is_stored(&later).await;
    assert_eq!(shop.stock("cd", &later).await, 101);
    shop.audit().await;
}

#[tokio::test]
async fn a_successor_goes_on_from_where_redis_is_ahead() {
    let (mut shop, _) = Frozen::ahead().await;
    let rows = shop.rows("cd").await;
    let successor = shop.shop.start_projector();
    std::mem::replace(&mut shop.projector, successor).crash().await;
    shop.projector.wait_ready().await;
    let later = shop.restock("cd").await;
    assert_eq!(shop.stock("cd", &later).await, 102);
    shop.queries.is_stored(&later).await;
    // Positions of partitions without rows may begin a new incarnation: the previous projector may not have learned of
    // a commit that Postgres took.
    assert_eq!(shop.rows("cd").await, rows, "the rows were declared stale");
    shop.audit().await;
}

#[tokio::test]
async fn a_position_of_records_that_the_log_does_not_have_is_not_believed() {
    let shop = Frozen::new().await;
    let Frozen { shop, projector, commands, .. } = shop;
    projector.stop().await;
    // Simulates a log that lost its last records: Redis has rows that came from them.
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
    eventually("the row is the one that the log yields", async || {
        let headers = [("consistency-token", token.as_str()), ("prefer", "wait=5")];
        let answer = query_api.client().get_with("/v1/products/cd", &headers).await;
        (answer.status == 200 && answer.json()["data"]["stock"] == 101).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_another_log_left_in_redis_under_the_same_prefix_is_never_served() {
    let other = Frozen::new().await;
    for stock in 101..=103 {
        let token = other.restock("cd").await;
        assert_eq!(other.stock("cd", &token).await, stock);
    }
    let Frozen { shop: other, projector, query_api, _command_api: command_api, .. } = other;
    projector.stop().await;
    query_api.stop().await;
    command_api.stop().await;
    let shop = Frozen::of(Shop { prefix: other.prefix, ..Shop::with_views(2).await }).await;
    // The other shop had a later version of this row.
    let token = shop.restock("cd").await;
    assert_eq!(shop.stock("cd", &token).await, 101);
    shop.queries.is_stored(&token).await;
    shop.audit().await;
}

#[tokio::test]
async fn a_postgres_that_lost_its_last_commits_catches_up_and_no_token_is_answered_with_less() {
    let shop = Frozen::new().await;
    let Frozen { shop, projector, query_api, _command_api: command_api, .. } = shop;
    projector.stop().await;
    query_api.stop().await;
    command_api.stop().await;
    let backup = copy_of_postgres(&shop).await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let mut token = String::new();
    for _ in 0..5 {
        let restocked = command_api.client().post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
        token = restocked.accepted(&["product.restocked.v1"]).token();
    }
    query_api.client().is_stored(&token).await;
    projector.stop().await;
    query_api.stop().await;
    command_api.stop().await;

    let shop = Shop { postgres_url: backup, ..shop };
    let (command_api, query_api) = (shop.command_api().await, shop.query_api().await);
    let queries = query_api.client();
    let fresh = |wait: &'static str| [("consistency-token", token.clone()), ("prefer", wait.to_owned())];
    let get = async |path: &str, wait| {
        let headers = fresh(wait);
        queries.get_with(path, &headers.each_ref().map(|(name, value)| (*name, value.as_str()))).await
    };
    assert_eq!(get("/v1/views/product", "wait=0").await.status, 503);
    let _projector = shop.projector().await;
    let row = get("/v1/products/cd", "wait=10").await;
    assert_eq!((row.status.as_u16(), &row.json()["data"]["stock"]), (200, &json!(105)), "{row:?}");
    let list = get("/v1/views/product", "wait=10").await;
    assert_eq!((list.status.as_u16(), &list.json()["rows"][0]["data"]["stock"]), (200, &json!(105)), "{list:?}");
    let last = command_api.client().post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
    queries.is_stored(&last.accepted(&["product.restocked.v1"]).token()).await;
    let config = projector::Config::from_env(&shop.env([])).unwrap();
    assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, []);
}

#[tokio::test]
async fn a_row_that_postgres_refuses_after_it_was_shown_is_taken_back() {
    let shop = Frozen::new().await;
    let refuse = "ALTER TABLE product_rows ADD CONSTRAINT poison CHECK (key <> 'cd') NOT VALID";
    shop.shop.sql(refuse).await;
    let token = shop.restock("cd").await;
    shop.comes_to_be_parked("cd", &token).await;
    let later = shop.register("other").await;
    assert_eq!(shop.stock("other", &later).await, 100);
    assert_eq!(shop.queries.get("/v1/products/cd").await.json()["data"]["stock"], 100);
    shop.shop.sql("ALTER TABLE product_rows DROP CONSTRAINT poison").await;
    let retried = shop.projector.admin_client().post("/parked/product/product/cd/retry", json!({})).await;
    assert_eq!(retried.status, 204, "{retried:?}");
    assert_eq!(shop.stock("cd", &token).await, 101);
    let last = shop.restock("cd").await;
    assert_eq!(shop.stock("cd", &last).await, 102);
    shop.audit().await;
    drop(shop.query_api);
}

#[tokio::test]
async fn once_a_retry_is_answered_no_reader_gets_the_row_from_before_it() {
    let shop = Frozen::new().await;
    let admin = shop.projector.admin_client();
    for stock in 100..103 {
        shop.shop.sql("ALTER TABLE product_rows ADD CONSTRAINT poison CHECK (key <> 'cd') NOT VALID").await;
        let token = shop.restock("cd").await;
        shop.comes_to_be_parked("cd", &token).await;
        assert_eq!(shop.queries.get("/v1/products/cd").await.json()["data"]["stock"], stock);
        shop.shop.sql("ALTER TABLE product_rows DROP CONSTRAINT poison").await;
        // Postgres answers these queries, and each of its answers is shared with concurrent readers for a moment.
        let looks = async {
            loop {
                shop.forget(":product:cd").await;
                shop.queries.get("/v1/products/cd").await;
            }
        };
        let retried = tokio::select! {
            retried = admin.post("/parked/product/product/cd/retry", json!({})) => retried,
            () = looks => unreachable!("the readers never stop"),
        };
        assert_eq!(retried.status, 204, "{retried:?}");
        assert_eq!(shop.stock("cd", &token).await, stock + 1);
    }
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_redis_forgets_and_postgres_holds_up_or_refuses_no_token_is_answered_with_less() {
    let mut shop = Frozen::new().await;
    let mut crowd = Crowd::of(&shop).await;
    let mut stock = 100;
    for forgotten in [":product:*", ":product", ""] {
        crowd.goes_on().await;
        shop.forget(forgotten).await;
        crowd.goes_on().await;
        shop.postgres.freeze();
        let token = shop.restock("cd").await;
        stock += 1;
        assert_eq!(shop.stock("cd", &token).await, stock);
        shop.forget(forgotten).await;
        shop.queries.get("/v1/products/cd").await;
        crowd.looks_on().await;
        let row = shop.get("/v1/products/cd", &token, "wait=0").await;
        assert!(row.status == 503 || row.json()["data"]["stock"] == stock, "{row:?}");
        shop.postgres.thaw();
        crowd.goes_on().await;
    }
    shop.shop.sql("ALTER TABLE product_rows ADD CONSTRAINT poison CHECK (key <> 'cd') NOT VALID").await;
    let parked = shop.restock("cd").await;
    shop.comes_to_be_parked("cd", &parked).await;
    crowd.goes_on().await;
    shop.shop.sql("ALTER TABLE product_rows DROP CONSTRAINT poison").await;
    let retried = shop.projector.admin_client().post("/parked/product/product/cd/retry", json!({})).await;
    assert_eq!(retried.status, 204, "{retried:?}");
    crowd.goes_on().await;
    let successor = shop.shop.start_projector();
    std::mem::replace(&mut shop.projector, successor).crash().await;
    crowd.goes_on().await;
    crowd.end().await;
    let last = shop.restock("cd").await;
    assert_eq!(shop.stock("cd", &last).await, stock + 2);
    shop.queries.is_stored(&last).await;
    shop.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_under_load_declares_no_row_stale() {
    let shop = Frozen::new().await;
    let mut crowd = Crowd::of(&shop).await;
    crowd.goes_on().await;
    let rows = shop.rows("watched-*").await;
    let second = shop.shop.projector().await;
    active(2, &[&shop.projector, &second]).await;
    crowd.goes_on().await;
    second.stop().await;
    crowd.goes_on().await;
    assert_eq!(shop.rows("watched-*").await, rows, "an incarnation changed");
    crowd.end().await;
    shop.audit().await;
}
