//! Guarantees of single commands, `POST /v1/{aggregates}/{id}/{command}`.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use uuid::{NoContext, Timestamp, Uuid};

use crate::fixture::{Client, SERVICE_TOKEN, Service, Shop, read_log};

fn record() -> Value {
    json!({ "name": "Kind of Blue", "price_cents": 1177, "stock": 10 })
}

fn reserve(order: &str, quantity: u32) -> Value {
    json!({ "order": order, "quantity": quantity })
}

async fn shop() -> (Shop, Service, Client) {
    let shop = Shop::new(2).await;
    let service = shop.command_api().await;
    let client = service.client();
    (shop, service, client)
}

#[tokio::test]
async fn an_accepted_command_tells_its_version_events_and_token_and_is_in_the_log() {
    let (shop, _service, client) = shop().await;
    let registered = client.post("/v1/products/cd/register", record()).await.accepted(&["product.registered.v1"]);
    assert_eq!(registered.header("etag"), Some("\"1\""));
    assert_eq!((&registered.json()["id"], &registered.json()["version"]), (&json!("cd"), &json!(1)));
    assert_eq!(registered.json()["token"], registered.token());
    assert!(registered.header("idempotent-replayed").is_none());
    let key: Uuid = registered.header("idempotency-key").unwrap().parse().unwrap();
    assert_eq!(key.get_version_num(), 7);

    let reserved = client.post("/v1/products/cd/reserve", reserve("o-1", 2)).await;
    assert_eq!(reserved.accepted(&["product.reserved.v2"]).header("etag"), Some("\"2\""));
    let log = read_log(&shop).await;
    let versions: Vec<_> = log.iter().map(|commit| (commit.aggregate.as_str(), commit.version)).collect();
    assert_eq!(versions, [("product/cd", 1), ("product/cd", 2)]);
}

#[tokio::test]
async fn a_command_whose_effect_is_already_there_is_accepted_without_events() {
    let (_shop, _service, client) = shop().await;
    client.post("/v1/products/cd/register", record()).await.accepted(&["product.registered.v1"]);
    let again = client.post("/v1/products/cd/register", record()).await.accepted(&[]);
    assert_eq!(again.header("etag"), Some("\"1\""));
}

#[tokio::test]
async fn a_rejection_tells_its_rule_and_the_state_that_it_was_decided_on() {
    let (_shop, _service, client) = shop().await;
    client.post("/v1/products/cd/reserve", reserve("o-1", 1)).await.rejected("not_registered");
    let registered = client.post("/v1/products/cd/register", record()).await;
    let rejected = client.post("/v1/products/cd/reserve", reserve("o-1", 11)).await.rejected("out_of_stock");
    // The rejection was decided on the state after the registration.
    let offset = |token: String| token.rsplit_once('-').unwrap().1.parse::<i64>().unwrap();
    assert!(offset(rejected.token()) >= offset(registered.token()));
    let other = json!({ "name": "Bitches Brew", "price_cents": 1177, "stock": 10 });
    client.post("/v1/products/cd/register", other).await.rejected("already_registered");
}

#[tokio::test]
async fn a_repeat_under_one_key_is_answered_as_before_and_changes_nothing() {
    let (shop, _service, client) = shop().await;
    client.post("/v1/products/cd/register", record()).await;
    let key = [("idempotency-key", "\"order-1\"")];
    let first = client.post_with("/v1/products/cd/reserve", &key, reserve("o-1", 2)).await;
    client.post("/v1/products/cd/reserve", reserve("o-2", 1)).await.accepted(&["product.reserved.v2"]);
    // A key is the same bare or quoted. Whitespace and the order of fields do not change the data.
    let bare = [("idempotency-key", "order-1"), ("content-type", "application/json")];
    let body = "{ \"quantity\": 2, \"order\": \"o-1\" }";
    let again = client.post_raw("/v1/products/cd/reserve", &bare, body).await;
    assert_eq!(again.json(), first.json());
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(read_log(&shop).await.len(), 3);
}

#[tokio::test]
async fn a_key_that_named_another_command_is_refused() {
    let (_shop, _service, client) = shop().await;
    client.post("/v1/products/cd/register", record()).await;
    let key = [("idempotency-key", "order-1")];
    client.post_with("/v1/products/cd/reserve", &key, reserve("o-1", 2)).await.accepted(&["product.reserved.v2"]);
    let reused = client.post_with("/v1/products/cd/reserve", &key, reserve("o-1", 3)).await;
    assert_eq!(reused.problem(422, "idempotency-key-reused", "").header("idempotency-key"), Some("order-1"));
    // A key is scoped to one aggregate.
    client.post_with("/v1/products/lp/register", &key, record()).await.accepted(&["product.registered.v1"]);
}

#[tokio::test]
async fn a_key_with_a_time_outside_the_window_is_refused() {
    let (_shop, _service, client) = shop().await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let key = |at: Duration| Uuid::new_v7(Timestamp::from_unix(NoContext, at.as_secs(), 0)).to_string();
    for at in [now - Duration::from_secs(3600), now + Duration::from_secs(600)] {
        let key = key(at);
        let answer = client.post_with("/v1/products/cd/register", &[("idempotency-key", &key)], record()).await;
        answer.problem(409, "idempotency-key-expired", "time");
    }
    let key = key(now);
    let fresh = client.post_with("/v1/products/cd/register", &[("idempotency-key", &key)], record()).await;
    fresh.accepted(&["product.registered.v1"]);
}

#[tokio::test]
async fn a_condition_holds_or_the_command_does_nothing() {
    let (shop, _service, client) = shop().await;
    let absent = [("if-none-match", "*"), ("idempotency-key", "first")];
    client.post_with("/v1/products/cd/register", &absent, record()).await.accepted(&["product.registered.v1"]);
    let taken = client.post_with("/v1/products/cd/register", &[("if-none-match", "*")], record()).await;
    assert_eq!(taken.problem(412, "precondition-failed", "").header("etag"), Some("\"1\""));

    let stale = client.post_with("/v1/products/cd/reserve", &[("if-match", "\"7\"")], reserve("o-1", 1)).await;
    assert_eq!(stale.problem(412, "precondition-failed", "").header("etag"), Some("\"1\""));
    let weak = [("if-match", "W/\"1\""), ("idempotency-key", "second")];
    client.post_with("/v1/products/cd/reserve", &weak, reserve("o-1", 1)).await.accepted(&["product.reserved.v2"]);
    // A repeat of an accepted command does not check its condition again.
    let again = client.post_with("/v1/products/cd/reserve", &weak, reserve("o-1", 1)).await;
    assert_eq!(again.accepted(&["product.reserved.v2"]).header("idempotent-replayed"), Some("true"));
    assert_eq!(read_log(&shop).await.len(), 2);
}

#[tokio::test]
async fn commands_that_finish_what_an_event_began_need_the_internal_listener_and_its_token() {
    let (_shop, service, client) = shop().await;
    client.post("/v1/products/cd/register", record()).await;
    service.caused("products", "cd", "reserve", reserve("o-1", 2)).await;
    let commit = json!({ "order": "o-1" });
    client.post("/v1/products/cd/commit", commit.clone()).await.problem(404, "not-found", "");
    client.post("/v1/orders/o-1/confirm-line", json!({ "product": "cd" })).await.problem(404, "not-found", "");

    let internal = service.internal_client();
    let missing = internal.post("/v1/products/cd/commit", commit.clone()).await;
    let missing = missing.problem(401, "unauthenticated", "");
    assert_eq!(missing.header("www-authenticate"), Some("Bearer realm=\"internal\""));
    let wrong = [("authorization", "Bearer wrong")];
    internal.post_with("/v1/products/cd/commit", &wrong, commit.clone()).await.problem(403, "forbidden", "");
    let bearer = format!("Bearer {SERVICE_TOKEN}");
    let committed = internal.post_with("/v1/products/cd/commit", &[("authorization", &bearer)], commit).await;
    committed.accepted(&["product.committed.v2"]);
}

#[tokio::test]
async fn of_many_who_want_the_last_units_just_so_many_get_one() {
    let (shop, _service, client) = shop().await;
    client.post("/v1/products/cd/register", record()).await;
    let buyers = (0..60).map(|buyer| {
        let client = client.clone();
        async move { client.post("/v1/products/cd/reserve", reserve(&format!("o-{buyer}"), 1)).await }
    });
    let answers = futures_util::future::join_all(buyers).await;
    let (sold, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!(sold.len(), 10);
    refused.into_iter().for_each(|answer| drop(answer.rejected("out_of_stock")));
    let log = read_log(&shop).await;
    assert_eq!(log.iter().filter(|commit| commit.events == ["product.reserved.v2"]).count(), 10);
}

#[tokio::test]
async fn every_problem_leads_to_its_explanation() {
    let (_shop, _service, client) = shop().await;
    let answer = client.post("/v1/products/cd/reserve", reserve("o-1", 1)).await.rejected("not_registered");
    let explained = client.get(answer.json()["type"].as_str().unwrap()).await;
    assert_eq!(explained.status, 200);
    assert!(explained.text.contains("rules"), "{explained:?}");
    client.get("/problems/nonsense").await.problem(404, "not-found", "");
}
