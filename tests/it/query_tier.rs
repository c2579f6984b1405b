//! What the query tier holds back from its servers, and what it answers when they hold back from it.

use redis::aio::MultiplexedConnection;
use schemas::cache::{ABSENT, ABSENT_TTL_SECS, PUT_NEWER, ROW_TTL_SECS, value};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{Client, Service, Shop, eventually};

fn record() -> Value {
    json!({ "name": "Kind of Blue", "price_cents": 1177, "stock": 10 })
}

async fn redis_of(shop: &Shop) -> MultiplexedConnection {
    redis::Client::open(shop.redis_url.as_str()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Reads of `product` that were answered by `origin` so far.
async fn reads(service: &Service, origin: &str) -> u64 {
    metric(service, &format!("stampede_reads_total{{origin=\"{origin}\",view=\"product\"}}")).await
}

/// 0 where there is none.
async fn metric(service: &Service, name: &str) -> u64 {
    let text = service.admin_client().get("/metrics").await.text;
    let line = text.lines().find(|line| line.starts_with(name));
    line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// Registers a product and gives its token.
async fn register(commands: &Client, id: &str) -> String {
    commands.post(&format!("/v1/products/{id}/register"), record()).await.accepted(&["product.registered.v1"]).token()
}

#[tokio::test]
async fn postgres_is_not_asked_again_for_what_it_just_did_not_have() {
    let shop = Shop::with_views(2).await;
    let (command_api, _projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    let token = register(&commands, "cd").await;
    queries.get_with("/v1/products/cd", &[("consistency-token", &token), ("prefer", "wait=10")]).await.json();
    eventually("Redis knows that there is no such row", async || {
        queries.get("/v1/products/none").await.problem(404, "not-found", "none");
        (reads(&query_api, "redis").await > 1).then_some(())
    })
    .await;
    let asked = reads(&query_api, "postgres").await;
    for _ in 0..50 {
        queries.get("/v1/products/none").await.problem(404, "not-found", "none");
    }
    assert_eq!(reads(&query_api, "postgres").await, asked);
}

#[tokio::test]
async fn that_a_row_was_not_there_never_hides_it_from_a_reader_with_its_token() {
    let shop = Shop::with_views(2).await;
    let (command_api, _projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    for round in 0..40 {
        let path = format!("/v1/products/p-{round}");
        // Absences are being written all the while.
        let strangers = tokio::spawn({
            let (queries, path) = (queries.clone(), path.clone());
            async move { while queries.get(&path).await.status == 404 {} }
        });
        let token = register(&commands, &format!("p-{round}")).await;
        for _ in 0..3 {
            let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
            assert_eq!(queries.get_with(&path, &headers).await.status, 200, "{path} {token}");
        }
        strangers.await.unwrap();
    }
}

#[tokio::test]
async fn an_absence_takes_no_rows_place_and_a_row_takes_an_absences() {
    let shop = Shop::new(1).await;
    let mut redis = redis_of(&shop).await;
    let key = format!("{}:{}", shop.prefix, Uuid::new_v4());
    let (absence, put_newer) = (value(ABSENT, b""), redis::Script::new(PUT_NEWER));
    let mut put = async |deadline: u64, ttl_secs: u64, version: u64, value: &[u8]| {
        let mut call = put_newer.key(&key);
        call.arg(deadline).arg(ttl_secs).arg(version).arg(value);
        let answer: i64 = call.invoke_async(&mut redis).await.unwrap();
        let standing: Option<Vec<u8>> = redis::cmd("GET").arg(&key).query_async(&mut redis).await.unwrap();
        let ttl: i64 = redis::cmd("TTL").arg(&key).query_async(&mut redis).await.unwrap();
        (answer, standing, ttl)
    };
    // Long after it was read: nobody knows what came and went in between.
    let (answer, standing, _) = put(1, ABSENT_TTL_SECS, ABSENT, &absence).await;
    assert_eq!((answer, standing), (-1, None));
    let (_, standing, ttl) = put(0, ABSENT_TTL_SECS, ABSENT, &absence).await;
    assert_eq!(standing, Some(absence.clone()));
    assert!(ttl <= ABSENT_TTL_SECS.cast_signed(), "{ttl}");
    let row = value(1, b"{}");
    let (_, standing, _) = put(0, ROW_TTL_SECS, 1, &row).await;
    assert_eq!(standing, Some(row.clone()));
    let (_, standing, ttl) = put(0, ABSENT_TTL_SECS, ABSENT, &absence).await;
    assert_eq!(standing, Some(row));
    assert!(ttl > ABSENT_TTL_SECS.cast_signed(), "{ttl}");
}
