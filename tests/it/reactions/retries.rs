//! Retries of parked reactions: automatic with backoff, and all at once by an operator.

use std::collections::BTreeSet;

use super::*;

/// Parks an order's payment: its units are released before it is paid. No client can do that, so this simulates a fault
/// of the reactor.
async fn park(whole: &Whole, order: &str) {
    whole.place(order, &[("cd", 1)]).await;
    whole.comes_to(&format!("/v1/orders/{order}"), json!({ "status": "confirmed" })).await;
    let command_api = whole.command_api.as_ref().unwrap();
    command_api.caused("products", "cd", "release", json!({ "order": order })).await;
    whole.pay(order, 500).await.accepted(&["order.paid.v2"]);
    are(whole, &format!("FROM parked WHERE aggregate = 'order/{order}'"), 1).await;
}

/// Reserves the order's units again, so that its payment can be committed.
async fn mend(whole: &Whole, order: &str) {
    let again = json!({ "order": order, "quantity": 1 });
    whole.command_api.as_ref().unwrap().caused("products", "cd", "reserve", again).await;
}

async fn are(whole: &Whole, rows: &str, count: i64) {
    let select = format!("SELECT count(*) {rows}");
    eventually(&format!("there are {count} {rows}"), async || {
        (whole.shop.sql(&select).await == Some(count)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_parked_is_tried_again_by_itself_after_longer_and_longer_and_done_once_it_can_be() {
    let whole = Whole::new(600).await;
    whole.register("cd", 5).await;
    park(&whole, "o").await;
    are(&whole, "FROM parked WHERE retry_at BETWEEN at + interval '50 s' AND at + interval '70 s'", 1).await;
    // Simulates a record that was parked 20 minutes ago.
    whole.shop.sql("UPDATE parked SET at = now() - interval '20 min', retry_at = now()").await;
    let soon = "FROM parked WHERE retry_at BETWEEN now() + interval '15 min' AND now() + interval '25 min'";
    are(&whole, soon, 1).await;
    let admin = whole.reactor.as_ref().unwrap().admin_client();
    eventually("the metrics show the parked record and its age", async || {
        let metrics = admin.get("/metrics").await.text;
        let age = metrics.lines().find_map(|line| line.strip_prefix("stampede_parked_age_seconds{view=\"reactor\"} "));
        let is_old = age.is_some_and(|secs| secs.parse::<f64>().unwrap() >= 1200.0);
        (is_old && metrics.contains("stampede_parked{view=\"reactor\"} 1")).then_some(())
    })
    .await;
    whole.shop.sql("UPDATE parked SET at = now() - interval '20 h', retry_at = now()").await;
    let in_an_hour = "FROM parked WHERE retry_at BETWEEN now() + interval '50 min' AND now() + interval '70 min'";
    are(&whole, in_an_hour, 1).await;

    mend(&whole, "o").await;
    whole.shop.sql("UPDATE parked SET retry_at = now()").await;
    whole.comes_to("/v1/products/cd", json!({ "stock": 4, "reserved": 0, "sold": 1 })).await;
    are(&whole, "FROM parked", 0).await;
}

#[tokio::test]
async fn an_operator_has_all_that_is_parked_tried_by_one_call_and_sees_all_of_it_page_by_page() {
    let whole = Whole::new(600).await;
    whole.register("cd", 5).await;
    park(&whole, "o").await;
    park(&whole, "p").await;
    // More copies of the record than a retry or a page of the list handles at once.
    let copy = |aggregate: &str| {
        format!(
            "INSERT INTO parked (view, aggregate, \"offset\", partition, version, reason, record)
             SELECT view, {aggregate}, \"offset\" + n * 1000000, partition, version, reason, record
             FROM parked, generate_series(1, 1200) AS n WHERE aggregate = 'order/o'"
        )
    };
    whole.shop.sql(&copy("aggregate")).await;
    let admin = whole.reactor.as_ref().unwrap().admin_client();
    let retry = async || admin.post("/parked/reactor/retry", json!({})).await.json();
    assert_eq!(retry().await, json!({ "done": 0, "failed": 1202, "left": 0 }));
    mend(&whole, "o").await;
    assert_eq!(retry().await, json!({ "done": 1201, "failed": 1, "left": 0 }));
    whole.comes_to("/v1/products/cd", json!({ "sold": 1 })).await;
    mend(&whole, "p").await;
    assert_eq!(retry().await, json!({ "done": 1, "failed": 0, "left": 0 }));
    assert_eq!(retry().await, json!({ "done": 0, "failed": 0, "left": 0 }));
    assert_eq!(admin.get("/parked").await.json(), json!({ "parked": [] }));
    assert_eq!(admin.post("/parked/deadlines/retry", json!({})).await.json(), json!({ "due": 0 }));
    assert_eq!(admin.post("/parked/product/retry", json!({})).await.status, 404);

    park(&whole, "q").await;
    whole.shop.sql(&copy("'order/x-' || n").replace("order/o", "order/q")).await;
    let (mut listed, mut path) = (BTreeSet::new(), "/parked".to_owned());
    loop {
        let page = admin.get(&path).await.json();
        for entry in page["parked"].as_array().unwrap() {
            assert!(listed.insert(entry["aggregate"].as_str().unwrap().to_owned()), "{entry} is listed twice");
        }
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/parked?after={next}");
    }
    assert_eq!(listed.len(), 1201);
    assert_eq!(admin.get("/parked?after=x").await.status, 400);
}
