//! The status of the whole system names what is degraded, and since when.

use std::time::Duration;

use schemas::time::{TimeMs, parse_rfc3339};
use serde_json::{Value, json};

use crate::fixture::{Proxy, Service, Shop, append_values, eventually};

/// Returns the status for operators.
async fn detailed(query_api: &Service) -> Value {
    query_api.admin_client().get("/status").await.json()
}

/// Waits until the status has exactly these problems, and returns it.
async fn awaited(query_api: &Service, expected: &[&str]) -> Value {
    let what = format!("the status names {expected:?}");
    eventually(&what, async || {
        let status = detailed(query_api).await;
        let mut found: Vec<_> = problems(&status).iter().map(|problem| problem["what"].as_str().unwrap()).collect();
        found.sort_unstable();
        found.dedup();
        (found == expected).then_some(status)
    })
    .await
}

fn problems(status: &Value) -> &[Value] {
    status["problems"].as_array().unwrap()
}

/// Asserts that a problem began between these times, but for what a look takes.
fn began_between(status: &Value, what: &str, from: TimeMs, to: TimeMs) {
    let problem = problems(status).iter().find(|problem| problem["what"] == what).unwrap();
    let since = parse_rfc3339(problem["since"].as_str().unwrap()).unwrap();
    assert!((from.0.saturating_sub(1000)..=to.0 + 1000).contains(&since.0), "{problem}: {from:?} {to:?}");
    assert_eq!(problem["do"], format!("deploy/RUNBOOKS.md#{}", what.to_lowercase()));
}

fn now() -> TimeMs {
    TimeMs(chassis::clock::now_ms())
}

/// Returns the status for clients, whose problems are the affected areas.
async fn public(query_api: &Service) -> (String, Vec<String>) {
    let answer = query_api.client().get("/v1/status").await;
    assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (200, Some("no-store")), "{answer:?}");
    let status = answer.json();
    let areas = problems(&status).iter().map(|problem| problem["what"].as_str().unwrap().to_owned());
    (status["status"].as_str().unwrap().to_owned(), areas.collect())
}

#[tokio::test]
async fn the_status_names_what_is_degraded_and_since_when_until_it_is_over() {
    let mut shop = Shop::with_views(2).await;
    let redis = Proxy::in_url(&mut shop.redis_url).await;
    redis.restore().await;
    let (command_api, _projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    command_api.client().post("/v1/products/cd/register", registered).await;
    // Until then Redis is unknown, which does not count yet.
    eventually("it is known what Redis shows", async || {
        let status = detailed(&query_api).await;
        status["views"].as_array().unwrap().iter().all(|view| view["redis_secs"].is_number()).then_some(())
    })
    .await;
    let status = awaited(&query_api, &[]).await;
    let services = |status: &Value| {
        let instances = status["instances"].as_array().unwrap().iter();
        let mut services: Vec<_> = instances.map(|it| it["service"].as_str().unwrap().to_owned()).collect();
        services.sort_unstable();
        services
    };
    assert_eq!(services(&status), ["command-api", "projector", "query-api"]);
    assert_eq!(public(&query_api).await, ("ok".to_owned(), vec![]));

    let begun = now();
    redis.cut().await;
    let status = eventually("the outage of Redis counts", async || {
        let status = detailed(&query_api).await;
        let is_named = problems(&status).iter().any(|problem| problem["what"] == "RedisUnavailable");
        is_named.then_some(status)
    })
    .await;
    began_between(&status, "RedisUnavailable", begun, now());
    assert_eq!(status["status"], "degraded");
    assert!(public(&query_api).await.1.contains(&"queries".to_owned()));
    redis.restore().await;
    awaited(&query_api, &[]).await;

    let begun = now();
    command_api.stop().await;
    let status = awaited(&query_api, &["PartitionWithoutOwner", "TierDown"]).await;
    began_between(&status, "TierDown", begun, now());
    assert_eq!(status["status"], "down");
    assert_eq!(public(&query_api).await, ("down".to_owned(), vec!["commands".to_owned()]));
    let _command_api = shop.command_api().await;
    assert_eq!(awaited(&query_api, &[]).await["status"], "ok");
}

#[tokio::test]
async fn the_status_names_a_halted_partition_and_an_instance_that_died() {
    let shop = Shop::with_views(2).await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    command_api.client().post("/v1/products/cd/discontinue", json!({})).await;
    awaited(&query_api, &[]).await;
    let begun = now();
    append_values(&shop, 1, &[("x".to_owned(), b"st9 of a build that does not exist".to_vec())]).await;
    let status = eventually("the projector reports that the partition is halted", async || {
        let status = detailed(&query_api).await;
        let halted = problems(&status).iter().filter(|problem| problem["what"] == "PartitionHalted");
        let places: Vec<_> = halted.map(|problem| problem["where"].as_str().unwrap()).collect();
        places.contains(&"partition 1, views").then_some(status)
    })
    .await;
    began_between(&status, "PartitionHalted", begun, now());
    assert!(public(&query_api).await.1.contains(&"commands".to_owned()));

    // It dies without removing its report.
    drop(projector);
    eventually("the dead instance is named, and that nobody folds", async || {
        let status = detailed(&query_api).await;
        let is_named = |what: &str| problems(&status).iter().any(|problem| problem["what"] == what);
        (is_named("InstanceDown") && is_named("NobodyFolds")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_postgres_the_status_says_so() {
    let mut shop = Shop::with_views(1).await;
    let postgres = Proxy::in_url(&mut shop.postgres_url).await;
    postgres.restore().await;
    let (_command_api, _projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    awaited(&query_api, &[]).await;
    postgres.cut().await;
    let begun = now();
    let status = eventually("the outage of Postgres counts", async || {
        let status = detailed(&query_api).await;
        let is_named = problems(&status).iter().any(|problem| problem["what"] == "PostgresUnavailable");
        is_named.then_some(status)
    })
    .await;
    began_between(&status, "PostgresUnavailable", begun, TimeMs(now().0 + Duration::from_secs(5).as_millis() as u64));
    assert_eq!(public(&query_api).await.0, "degraded");
    postgres.restore().await;
    awaited(&query_api, &[]).await;
}
