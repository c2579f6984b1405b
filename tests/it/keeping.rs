//! Aggregates and idempotency keys that an owner loads from Postgres instead of holding them in memory.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use projector::snapshots::prepare::{Prepared, prepare};
use serde_json::json;

use crate::fixture::{Proxy, Service, Shop, eventually};

/// Waits until the journal has all events of the log.
async fn caught_up(shop: &Shop, journal: i64) {
    eventually("the journal has every event", async || {
        (shop.sql("SELECT count(*) FROM journal").await == Some(journal)).then_some(())
    })
    .await;
}

async fn residents(service: &Service) -> u64 {
    of_all_partitions(service, "stampede_resident_aggregates").await
}

async fn of_all_partitions(service: &Service, metric: &str) -> u64 {
    let metrics = service.admin_client().get("/metrics").await.text;
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn a_new_owner_has_the_past_from_postgres_and_the_end_from_the_log() {
    let shop = Shop::with_views(2).await;
    let projector = shop.projector().await;
    let first = shop.command_api().await;
    let client = first.client();
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    let key = [("idempotency-key", "the-first")];
    let before = client.post_with("/v1/products/cold/register", &key, registered.clone()).await;
    client.post("/v1/products/long/register", registered.clone()).await;
    // Long enough for a snapshot.
    let lines: Vec<_> =
        (0..600).map(|_| crate::fixture::batch_line("products", "long", "restock", json!({ "quantity": 1 }))).collect();
    assert!(client.batch(&lines).await.iter().all(|answer| answer["status"] == 200));
    caught_up(&shop, 602).await;
    eventually("a snapshot is stored", async || {
        shop.sql("SELECT version FROM state_snapshots WHERE aggregate = 'product/long'").await
    })
    .await;
    projector.stop().await;
    // The journal lacks this event.
    client.post("/v1/products/cold/restock", json!({ "quantity": 2 })).await.accepted(&["product.restocked.v1"]);
    first.crash().await;

    let second = shop.command_api().await;
    assert!(residents(&second).await <= 1, "more than the end of the log was read");
    let client = second.client();
    let again = client.post_with("/v1/products/cold/register", &key, registered).await;
    assert_eq!((again.json(), again.header("idempotent-replayed")), (before.json(), Some("true")));
    let reserved = client.post("/v1/products/cold/reserve", json!({ "order": "o", "quantity": 7 })).await;
    assert_eq!(reserved.accepted(&["product.reserved.v2"]).header("etag"), Some("\"3\""));
    let reserved = client.post("/v1/products/long/reserve", json!({ "order": "o", "quantity": 605 })).await;
    assert_eq!(reserved.accepted(&["product.reserved.v2"]).header("etag"), Some("\"602\""));
    client.post("/v1/products/long/reserve", json!({ "order": "p", "quantity": 1 })).await.rejected("out_of_stock");
    client.post("/v1/products/never/restock", json!({ "quantity": 1 })).await.rejected("not_registered");
}

#[tokio::test]
async fn a_state_that_only_another_build_kept_is_folded_in_pages_and_can_be_kept_before_a_release() {
    let shop = Shop::with_views(1).await;
    let projector = shop.projector().await;
    let first = shop.command_api().await;
    let client = first.client();
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    for product in ["long", "short"] {
        client.post(&format!("/v1/products/{product}/register"), registered.clone()).await;
    }
    // The history has two full pages and a part of a third.
    let restock = crate::fixture::batch_line("products", "long", "restock", json!({ "quantity": 1 }));
    assert!(client.batch(&vec![restock; 9_000]).await.iter().all(|answer| answer["status"] == 200));
    caught_up(&shop, 9_002).await;
    eventually("a snapshot is stored", async || {
        shop.sql("SELECT version FROM state_snapshots WHERE aggregate = 'product/long'").await
    })
    .await;
    projector.stop().await;
    first.crash().await;
    shop.sql("UPDATE state_snapshots SET form = -2").await;

    let second = shop.command_api().await;
    let client = second.client();
    let reserve = async |quantity| {
        let data = json!({ "order": format!("o-{quantity}"), "quantity": quantity });
        client.post("/v1/products/long/reserve", data).await
    };
    let reserved = reserve(9_005).await;
    assert_eq!(reserved.accepted(&["product.reserved.v2"]).header("etag"), Some("\"9002\""));
    reserve(1).await.rejected("out_of_stock");
    let restocked = client.post("/v1/products/short/restock", json!({ "quantity": 1 })).await;
    assert_eq!(restocked.accepted(&["product.restocked.v1"]).header("etag"), Some("\"2\""));

    // The new snapshot is stored beside that of the other build, once, and for long histories only.
    let count = async |what: &str| shop.sql(&format!("SELECT count(*) FROM state_snapshots WHERE {what}")).await;
    for (made, found) in [(1, 0), (0, 1)] {
        let prepared = prepare(&shop.postgres_url.as_str().into(), |_| ()).await.unwrap();
        assert_eq!(prepared, Prepared { looked_at: 2, made, found, failed: 0 });
        assert_eq!((count("form = -2").await, count("form > 0 AND version = 9001").await), (Some(1), Some(1)));
    }
    // Snapshots of a build that has not been used for a week are deleted.
    shop.sql("INSERT INTO snapshot_forms VALUES (-2, now() - interval '8 days')").await;
    let _projector = shop.projector().await;
    eventually("the other build's snapshot is deleted", async || (count("form = -2").await == Some(0)).then_some(()))
        .await;
    assert_eq!(count("form > 0").await, Some(1));
    assert_eq!(shop.sql("SELECT count(*) FROM snapshot_forms").await, Some(1));
}

/// Returns a projector, a proxy to the owner's Postgres, and the owner. A previous owner registered these products, and
/// the journal has them.
async fn owner_after_another(products: &[&str]) -> (Service, Arc<Proxy>, Service) {
    let mut shop = Shop::with_views(1).await;
    let projector = shop.projector().await;
    let first = shop.command_api().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    for product in products {
        let answer = first.client().post(&format!("/v1/products/{product}/register"), registered.clone()).await;
        answer.accepted(&["product.registered.v1"]);
    }
    caught_up(&shop, i64::try_from(products.len()).unwrap()).await;
    first.stop().await;
    let postgres = proxy_to_postgres(&mut shop).await;
    (projector, postgres, shop.command_api().await)
}

#[tokio::test]
async fn without_postgres_an_owner_serves_what_it_holds_and_refuses_what_it_does_not() {
    let (_projector, postgres, second) = owner_after_another(&["one", "other"]).await;
    let client = second.client();
    let restock = json!({ "quantity": 1 });
    client.post("/v1/products/one/restock", restock.clone()).await.accepted(&["product.restocked.v1"]);
    postgres.cut().await;
    client.post("/v1/products/one/restock", restock.clone()).await.accepted(&["product.restocked.v1"]);
    client.post("/v1/products/other/restock", restock.clone()).await.problem(503, "overloaded", "");
    postgres.restore().await;
    eventually("the other product is served again", async || {
        let answer = client.post("/v1/products/other/restock", restock.clone()).await;
        (answer.status == 200).then(|| assert_eq!(answer.header("etag"), Some("\"2\"")))
    })
    .await;
}

#[tokio::test]
async fn a_key_that_cannot_be_looked_up_keeps_no_other_command_waiting() {
    let (_projector, postgres, second) = owner_after_another(&["hot"]).await;
    let (client, restock) = (second.client(), json!({ "quantity": 1 }));
    let path = "/v1/products/hot/restock";
    client.post(path, restock.clone()).await.accepted(&["product.restocked.v1"]);
    postgres.freeze();
    // The key has no timestamp, so the previous owner may have seen it.
    let untimed = [("idempotency-key", "order-17"), ("prefer", "wait=20")];
    let mut waiting = pin!(client.post_with(path, &untimed, restock.clone()));
    let others = async {
        for _ in 0..50 {
            let answer = client.post_with(path, &[("prefer", "wait=2")], restock.clone()).await;
            answer.accepted(&["product.restocked.v1"]);
        }
    };
    tokio::select! {
        answer = &mut waiting => panic!("answered although its key could not be looked up: {answer:?}"),
        () = others => {}
    }
    postgres.thaw();
    waiting.await.accepted(&["product.restocked.v1"]);
}

#[tokio::test]
async fn while_postgres_is_frozen_new_aggregates_are_served_and_known_ones_are_not_taken_for_new() {
    let mut shop = Shop::with_views(2).await;
    let postgres = proxy_to_postgres(&mut shop).await;
    let projector = shop.projector().await;
    let first = shop.command_api().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    // Some are in closed segments, some behind them.
    let line = |n| crate::fixture::batch_line("products", &format!("old-{n}"), "register", registered.clone());
    let lines: Vec<_> = (0..5_000).map(line).collect();
    assert!(first.client().batch(&lines).await.iter().all(|answer| answer["status"] == 200));
    caught_up(&shop, 5_000).await;
    eventually("two segments of each partition are closed", async || {
        (shop.sql("SELECT count(*) FROM segments").await >= Some(4)).then_some(())
    })
    .await;
    first.stop().await;

    let second = shop.command_api().await;
    let client = second.client();
    eventually("all names are loaded", async || {
        (of_all_partitions(&second, "stampede_names_complete").await == 2).then_some(())
    })
    .await;
    assert!(of_all_partitions(&second, "stampede_known_names").await > 4_900);
    postgres.freeze();
    let mut accepted = 0;
    for n in 0..50 {
        // Every other key has no timestamp, so the previous owner may have seen it.
        let key = format!("key-{n}");
        let patience = ("prefer", "wait=2");
        let headers = [patience, ("idempotency-key", &key)];
        let headers = if n % 2 == 0 { &headers[..] } else { &headers[..1] };
        let answer = client.post_with(&format!("/v1/products/new-{n}/register"), headers, registered.clone()).await;
        // The name filter has a few false positives.
        if answer.status == 200 {
            assert_eq!(answer.accepted(&["product.registered.v1"]).header("etag"), Some("\"1\""));
            accepted += 1;
        }
    }
    assert!(accepted >= 45, "{accepted} of 50");
    let again = [("prefer", "wait=1")];
    for n in [0, 2_500, 4_999] {
        let answer = client.post_with(&format!("/v1/products/old-{n}/register"), &again, registered.clone()).await;
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    postgres.thaw();
    for n in 0..50 {
        // Registers the false positives, too.
        client.post(&format!("/v1/products/new-{n}/register"), registered.clone()).await;
    }
    eventually("the views show all of them", async || {
        (shop.sql("SELECT count(*) FROM view_product").await == Some(5_050)).then_some(())
    })
    .await;
    let config = projector::Config::from_env(&shop.env([])).unwrap();
    assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, []);
    drop(projector);
}

#[tokio::test]
async fn without_postgres_at_the_start_an_owner_reads_the_whole_log() {
    let mut shop = Shop::with_views(1).await;
    let first = shop.command_api().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    first.client().post("/v1/products/cd/register", registered).await;
    first.stop().await;
    let _never_there = Proxy::in_url(&mut shop.postgres_url).await;
    let second = shop.command_api().await;
    let restocked = second.client().post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
    assert_eq!(restocked.accepted(&["product.restocked.v1"]).header("etag"), Some("\"2\""));
}

#[tokio::test]
async fn a_postgres_that_lacks_what_memory_lacks_is_not_asked_again_and_again() {
    const MEASURED: Duration = Duration::from_secs(4);
    /// Bound far below the thousands per second that four workers make when they query without a pause.
    const MAX_TRANSACTIONS: i64 = 400;
    let shop = Shop::with_views(1).await;
    let projector = shop.projector().await;
    let first = shop.command_api().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    first.client().post("/v1/products/cold/register", registered).await.accepted(&["product.registered.v1"]);
    caught_up(&shop, 1).await;
    projector.stop().await;
    first.crash().await;
    let second = shop.command_api().await;

    // Simulates a restored Postgres.
    let at = shop.sql("SELECT next_offset FROM checkpoints WHERE view = 'journal'").await.unwrap();
    let set = async |at| shop.sql(&format!("UPDATE checkpoints SET next_offset = {at} WHERE view = 'journal'")).await;
    set(1).await;
    let client = second.client();
    let restock = tokio::spawn(async move {
        client.post_with("/v1/products/cold/restock", &[("prefer", "wait=20")], json!({ "quantity": 1 })).await
    });
    let transactions =
        async || shop.sql("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()").await.unwrap();
    let before = transactions().await;
    tokio::time::sleep(MEASURED).await;
    let made = transactions().await - before;
    assert!(made < MAX_TRANSACTIONS, "{made} transactions in {MEASURED:?}");
    assert!(!restock.is_finished(), "answered without its aggregate's state");
    set(at).await;
    restock.await.unwrap().accepted(&["product.restocked.v1"]);
}

/// Registers products until the owner's memory of 1 MiB is full, and returns their number.
async fn register_too_many(client: &crate::fixture::Client) -> u64 {
    let mut registered = 0;
    for range in (0..8000).collect::<Vec<_>>().chunks(2000) {
        let register = |n: &i32| {
            let data = json!({ "name": "A", "price_cents": 1, "stock": 5 });
            crate::fixture::batch_line("products", &format!("p-{n}"), "register", data)
        };
        let lines: Vec<_> = range.iter().map(register).collect();
        let answers = client.batch(&lines).await;
        let accepted = answers.iter().filter(|answer| answer["status"] == 200).count();
        registered += accepted as u64;
        if accepted < lines.len() {
            break;
        }
    }
    registered
}

#[tokio::test]
async fn a_full_memory_evicts_what_postgres_has_and_serves_it_all_the_same() {
    let shop = Shop::with_views(1).await;
    let _projector = shop.projector().await;
    let service = shop.small_command_api().await;
    let client = service.client();
    let registered = register_too_many(&client).await;
    eventually("unused aggregates are evicted", async || (residents(&service).await < registered).then_some(())).await;
    for n in [0, 1000, 1999] {
        let restocked = eventually("an evicted product is served", async || {
            let answer = client.post(&format!("/v1/products/p-{n}/restock"), json!({ "quantity": 1 })).await;
            (answer.status == 200).then_some(answer)
        });
        assert_eq!(restocked.await.header("etag"), Some("\"2\""));
    }
}

#[tokio::test]
async fn a_full_memory_without_a_projector_refuses_new_aggregates_and_serves_what_it_holds() {
    let shop = Shop::with_views(1).await;
    let service = shop.small_command_api().await;
    let client = service.client();
    register_too_many(&client).await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    // Each attempt uses another name, because names that arrived before the owner checked its memory are held.
    let mut news = 0;
    eventually("new aggregates are refused", async || {
        news += 1;
        let answer = client.post(&format!("/v1/products/new-{news}/register"), registered.clone()).await;
        (answer.status == 503).then(|| answer.problem(503, "overloaded", "no room"))
    })
    .await;
    let restocked = client.post("/v1/products/p-0/restock", json!({ "quantity": 1 })).await;
    assert_eq!(restocked.accepted(&["product.restocked.v1"]).header("etag"), Some("\"2\""));
}

#[tokio::test]
async fn tables_of_another_log_are_refused() {
    let shop = Shop::with_views(1).await;
    let projector = shop.projector().await;
    let first = shop.command_api().await;
    first.client().post("/v1/products/cd/discontinue", json!({})).await;
    eventually("the tables name the log", async || shop.sql("SELECT nonce FROM log_partitions").await).await;
    projector.stop().await;
    first.stop().await;
    shop.sql("UPDATE log_partitions SET nonce = nonce + 1").await;
    let failure = shop.start_command_api("0").await.failure().await;
    assert!(failure.contains("the tables belong to another log"), "{failure}");
}

/// Puts a proxy, which forwards at first, in front of Postgres.
async fn proxy_to_postgres(shop: &mut Shop) -> Arc<Proxy> {
    let proxy = Proxy::in_url(&mut shop.postgres_url).await;
    proxy.restore().await;
    proxy
}
