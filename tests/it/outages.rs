//! Servers that are unavailable, at the start or later. A later outage of Kafka is tested in `stack`, because Kafka
//! clients connect to the advertised addresses and bypass a proxy.

use std::sync::Arc;

use serde_json::json;
use tokio_postgres::NoTls;

use crate::fixture::{DEADLINE, Load, Proxy, Service, Shop, batch_line, eventually, prove, read_log};
use crate::query_tier::given_by_redis;

/// Returns a shop whose Postgres and Redis can be cut off.
async fn behind_proxies() -> (Shop, Arc<Proxy>, Arc<Proxy>) {
    let mut shop = Shop::with_views(2).await;
    let (postgres, redis) = (Proxy::in_url(&mut shop.postgres_url).await, Proxy::in_url(&mut shop.redis_url).await);
    (shop, postgres, redis)
}

async fn readyz_names(service: &Service, what: &str) {
    let answer = service.admin_client().get("/readyz").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.text.contains(what), "{answer:?}");
}

#[tokio::test]
async fn a_service_that_starts_before_kafka_waits_for_it_and_says_so() {
    let mut shop = Shop::with_views(2).await;
    let kafka = Proxy::to(&shop.brokers).await;
    shop.brokers = kafka.addr.to_string();
    let command_api = shop.start_command_api("0-1").await;
    let projector = shop.start_projector();
    for service in [&command_api, &projector] {
        service.wait_for_waiting("kafka").await;
        readyz_names(service, "kafka").await;
    }
    command_api.client().post("/v1/products/cd/discontinue", json!({})).await.problem(503, "unavailable", "");
    kafka.restore().await;
    command_api.wait_ready().await;
    projector.wait_ready().await;
    command_api.client().post("/v1/products/cd/discontinue", json!({})).await.rejected("not_registered");
}

#[tokio::test]
async fn a_service_that_starts_before_postgres_and_redis_waits_for_them_and_says_so() {
    let (shop, postgres, redis) = behind_proxies().await;
    let command_api = shop.command_api().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    let token = command_api.client().post("/v1/products/cd/register", registered).await.token();
    let projector = shop.start_projector();
    let query_api = shop.start_query_api().await;
    for service in [&projector, &query_api] {
        service.wait_for_waiting("postgres").await;
        readyz_names(service, "postgres").await;
    }
    query_api.client().get("/v1/products/cd").await.problem(503, "unavailable", "");
    postgres.restore().await;
    for service in [&projector, &query_api] {
        service.wait_for_waiting_only("redis").await;
    }
    // Without Redis, Postgres answers.
    let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    assert_eq!(query_api.client().get_with("/v1/products/cd", &headers).await.status, 200);
    redis.restore().await;
    projector.wait_ready().await;
    query_api.wait_ready().await;
}

#[tokio::test]
async fn without_redis_answers_come_from_postgres_and_are_as_fresh() {
    let (shop, postgres, redis) = behind_proxies().await;
    postgres.restore().await;
    redis.restore().await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let registered = json!({ "name": "A", "price_cents": 1000, "stock": 1 });
    command_api.client().post("/v1/products/cd/register", registered).await;
    for price in 1..=30 {
        // Redis is unavailable for the middle third.
        match price {
            10 => redis.cut().await,
            20 => redis.restore().await,
            _ => {}
        }
        let repriced = command_api.client().post("/v1/products/cd/reprice", json!({ "price_cents": price })).await;
        let (token, queries) = (repriced.accepted(&["product.repriced.v1"]).token(), query_api.client());
        let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
        let answer = queries.get_with("/v1/products/cd", &headers).await;
        assert_eq!(answer.json()["data"]["price_cents"], price, "{answer:?}");
    }
    projector.wait_ready().await;
    assert!(query_api.readiness.is_ready(), "an outage of Redis made query-api unready");
}

#[tokio::test]
async fn without_postgres_redis_answers_what_it_has_and_commands_go_on() {
    let (shop, postgres, redis) = behind_proxies().await;
    postgres.restore().await;
    redis.restore().await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    let registered = json!({ "name": "A", "price_cents": 1000, "stock": 1 });
    let token = commands.post("/v1/products/cd/register", registered).await.token();
    given_by_redis(&query_api.admin_client(), &queries, "cd", &token).await;
    queries.is_stored(&token).await;

    postgres.cut().await;
    let repriced = commands.post("/v1/products/cd/reprice", json!({ "price_cents": 7 })).await;
    let token = repriced.accepted(&["product.repriced.v1"]).token();
    // The projector may fold one more batch before it notices that Postgres is gone, so either price is correct.
    let row = queries.get("/v1/products/cd").await;
    assert_eq!(row.status, 200, "{row:?}");
    assert!([json!(1000), json!(7)].contains(&row.json()["data"]["price_cents"]), "{row:?}");
    queries.get("/v1/products/other").await.problem(503, "unavailable", "");
    projector.wait_for_waiting("postgres").await;

    postgres.restore().await;
    let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    let answer = eventually("the views have caught up", async || {
        Some(queries.get_with("/v1/products/cd", &headers).await).filter(|answer| answer.status == 200)
    });
    assert_eq!(answer.await.json()["data"]["price_cents"], 7);
    projector.wait_ready().await;
}

#[tokio::test]
async fn a_postgres_whose_disk_is_full_stops_folding_with_a_clear_word_and_nothing_is_lost() {
    let shop = Shop::with_views(2).await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    let product = json!({ "name": "A", "price_cents": 5, "stock": 1 });
    let token = commands.post("/v1/products/cd/register", product).await.token();
    queries.is_stored(&token).await;
    // Simulates a full disk. A sequence advances even if its transaction fails.
    shop.sql("CREATE SEQUENCE tries").await;
    shop.sql(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('tries');
         RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$",
    )
    .await;
    shop.sql("CREATE TRIGGER full_disk BEFORE INSERT ON journal_tail FOR EACH STATEMENT EXECUTE FUNCTION fail()").await;

    let restocked = commands.post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
    let token = restocked.accepted(&["product.restocked.v1"]).token();
    projector.wait_for_waiting("postgres").await;
    eventually("the commit was retried", async || {
        readyz_names(&projector, "No space left on device").await;
        (shop.sql("SELECT last_value FROM tries").await >= Some(5)).then_some(())
    })
    .await;
    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    let row = queries.get_with("/v1/products/cd", &fresh).await;
    assert_eq!((row.status.as_u16(), &row.json()["data"]["stock"]), (200, &json!(2)), "{row:?}");

    shop.sql("DROP TRIGGER full_disk ON journal_tail").await;
    projector.wait_ready().await;
    queries.is_stored(&token).await;
    let parked = projector.admin_client().get("/parked").await.json();
    assert_eq!(parked, json!({ "parked": [] }), "a record was parked because of a full disk");
    let config = projector::Config::from_env(&shop.env([])).unwrap();
    assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, []);
}

#[tokio::test]
async fn a_commit_that_takes_postgres_too_long_is_tried_in_smaller_pieces() {
    let shop = Shop::with_views(1).await;
    let command_api = shop.command_api().await;
    let register =
        |n| batch_line("products", &format!("p-{n}"), "register", json!({ "name": "A", "price_cents": 1, "stock": 1 }));
    let answers = command_api.client().batch(&(0..2_000).map(register).collect::<Vec<_>>()).await;
    assert!(answers.iter().all(|answer| answer["status"] == 200));
    // Simulates a statement timeout on a slow disk.
    shop.sql(
        "CREATE FUNCTION give_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
         IF cardinality(NEW.records) > 100 THEN RAISE 'too slow' USING ERRCODE = 'query_canceled'; END IF;
         RETURN NEW; END $$",
    )
    .await;
    shop.sql("CREATE TRIGGER slow BEFORE INSERT ON journal_tail FOR EACH ROW EXECUTE FUNCTION give_up()").await;
    let _projector = shop.start_projector();
    eventually("all events are in the journal", async || {
        (shop.sql("SELECT count(*) FROM journal").await == Some(2_000)).then_some(())
    })
    .await;
}

/// A transaction that has read every table, like that of a backup, and requires that the tables do not change.
pub(crate) struct Snapshot(tokio_postgres::Client);

impl Snapshot {
    pub(crate) async fn open(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.unwrap();
        let snapshot = Self(client);
        snapshot.rows().await;
        snapshot
    }

    /// Counts the rows of every table, and so holds a lock on each that blocks changes of its schema.
    pub(crate) async fn rows(&self) -> Vec<(String, i64)> {
        let tables = "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p') \
                      AND relnamespace = 'public'::regnamespace ORDER BY oid";
        let mut rows = Vec::new();
        for table in self.0.query(tables, &[]).await.unwrap() {
            let table: String = table.get(0);
            let count = self.0.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap();
            rows.push((table, count.get(0)));
        }
        rows
    }

    pub(crate) async fn end(self) {
        self.0.batch_execute("COMMIT").await.unwrap();
    }
}

/// Creates an expired partition of `repeats`, which the projector drops.
pub(crate) const OLD_REPEATS: &str =
    "CREATE TABLE repeats_1 PARTITION OF repeats FOR VALUES FROM (to_timestamp(300)) TO (to_timestamp(600))";
const HAS_OLD_REPEATS: &str = "SELECT count(*) FROM pg_class WHERE relname = 'repeats_1'";

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_postgres_holds_up_no_view_and_nothing_else_that_can_be_done_beside_it() {
    const ROUNDS: u32 = 200;
    let shop = Shop::with_views(1).await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    let product = json!({ "name": "A", "price_cents": 5, "stock": 1 });
    let token = commands.post("/v1/products/cd/register", product).await.token();
    queries.is_stored(&token).await;
    projector.stop().await;
    // Simulates the passing of time: one partition of this table has expired, and the newest one is missing.
    shop.sql(OLD_REPEATS).await;
    let newest = "SELECT max(substring(relname FROM 9)::bigint) FROM pg_class WHERE relname ~ '^repeats_[0-9]+$'";
    let newest = shop.sql(newest).await.unwrap();
    shop.sql(&format!("DROP TABLE repeats_{newest}")).await;
    let backup = Snapshot::open(&shop.postgres_url).await;
    let (before, segments) = (backup.rows().await, "SELECT count(*) FROM segments");
    assert_eq!(shop.sql(segments).await, Some(0));

    let _projector = shop.projector().await;
    let load = Load::start(vec![commands.clone()]);
    for stock in 2..ROUNDS + 2 {
        let restocked = commands.post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
        let token = restocked.accepted(&["product.restocked.v1"]).token();
        let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=30")];
        let row = queries.get_with("/v1/products/cd", &fresh).await;
        assert_eq!((row.status.as_u16(), &row.json()["data"]["stock"]), (200, &json!(stock)), "{row:?}");
        // A list is answered by Postgres only, so each query has waited for a commit.
        let page = queries.get_with("/v1/views/product", &fresh).await;
        assert_eq!(page.status, 200, "{page:?}");
        let page = page.json();
        let listed = page["rows"].as_array().unwrap().iter().find(|row| row["key"] == "cd").unwrap();
        assert_eq!(listed["data"]["stock"], stock);
    }
    let heard = prove(load.end().await, &read_log(&shop).await);
    let many = vec![batch_line("products", "lp", "restock", json!({ "quantity": 1 })); 2_500];
    let product = json!({ "name": "A", "price_cents": 5, "stock": 0 });
    commands.post("/v1/products/lp/register", product).await.accepted(&["product.registered.v1"]);
    assert!(commands.batch(&many).await.iter().all(|answer| answer["status"] == 200));
    eventually("segments are closed", async || (shop.sql(segments).await >= Some(2)).then_some(())).await;
    let made = format!("SELECT count(*) FROM pg_class WHERE relname = 'repeats_{newest}'");
    assert_eq!(shop.sql(&made).await, Some(1), "the missing partition was not created");
    let migrated = tokio::time::timeout(DEADLINE, projector::migrate(&shop.postgres_url.as_str().into())).await;
    migrated.expect("the migration waits for no lock").unwrap();
    assert_eq!(shop.sql(HAS_OLD_REPEATS).await, Some(1), "the expired partition was dropped under the backup");
    assert_eq!(backup.rows().await, before, "the snapshot changed");

    backup.end().await;
    eventually("the expired partition is dropped", async || (shop.sql(HAS_OLD_REPEATS).await == Some(0)).then_some(()))
        .await;
    let config = projector::Config::from_env(&shop.env([])).unwrap();
    assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, [], "{heard}");
}
