//! Client errors: each is answered with the documented problem and writes nothing.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use uuid::{NoContext, Timestamp, Uuid};

use crate::fixture::{SERVICE_TOKEN, Shop, batch_line, read_log};

const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_malformed_command_is_refused_with_the_name_of_its_field_and_writes_nothing() {
    let shop = Shop::new(2).await;
    let service = shop.command_api().await;
    let client = service.client();
    let register = "/v1/products/cd/register";
    let reserve = "/v1/products/cd/reserve";
    let place = "/v1/orders/o-1/place";
    let line = |line: &str| format!(r#"{{"customer":"c","lines":[{line}]}}"#);
    let cases = [
        (register, r#"{"name":"#.to_owned(), ""),
        (register, "[]".to_owned(), "object"),
        (register, r#"["A", 1, 1, null]"#.to_owned(), "object"),
        (register, r#"{"name":"A","price_cents":1,"stock":1,"colour":"blue"}"#.to_owned(), "colour"),
        (register, r#"{"name":"A","price_cents":1}"#.to_owned(), "stock"),
        (register, r#"{"name":"A","price_cents":"1","stock":1}"#.to_owned(), "price_cents"),
        (register, r#"{"name":"A","price_cents":1.5,"stock":1}"#.to_owned(), "price_cents"),
        (register, r#"{"name":"A","price_cents":-1,"stock":1}"#.to_owned(), "price_cents"),
        (register, r#"{"name":"A","price_cents":1,"stock":-1}"#.to_owned(), "stock"),
        (register, r#"{"name":"A","price_cents":1,"stock":99999999999999999999}"#.to_owned(), "stock"),
        (register, r#"{"name":"A\u0000B","price_cents":1,"stock":1}"#.to_owned(), "name"),
        (register, r#"{"name":"","price_cents":1,"stock":1}"#.to_owned(), "name"),
        (register, format!(r#"{{"name":"{}","price_cents":1,"stock":1}}"#, "x".repeat(501)), "name"),
        (register, r#"{"name":"A","name":"B","price_cents":1,"stock":1}"#.to_owned(), "name"),
        (reserve, r#"{"order":"o-1","quantity":0}"#.to_owned(), "quantity"),
        (reserve, r#"{"order":"o-1","quantity":-2}"#.to_owned(), "quantity"),
        (reserve, r#"{"order":"o-1","quantity":4294967296}"#.to_owned(), "quantity"),
        (reserve, r#"{"order":"o 1","quantity":1}"#.to_owned(), "order"),
        (reserve, r#"{"order":"..","quantity":1}"#.to_owned(), "order"),
        (reserve, r#"{"order":"o-1","quantity":1,"hold_secs":86401}"#.to_owned(), "hold_secs"),
        (reserve, r#"{"order":"o-1","quantity":1,"amount_cents":1}"#.to_owned(), "amount_cents"),
        (place, line(r#"{"product":"cd","quantity":0,"amount_cents":1}"#), "quantity"),
        (place, line(r#"{"product":"cd","quantity":1,"amount_cents":-1}"#), "amount_cents"),
        (place, line(r#"{"product":"ä","quantity":1,"amount_cents":1}"#), "product"),
        (place, r#"{"customer":"c","lines":{}}"#.to_owned(), "lines"),
        (place, r#"{"customer":"c","lines":[],"ordered_at":"1997-01-01T00:00:00Z"}"#.to_owned(), "ordered_at"),
        ("/v1/orders/o-1/record", r#"{"customer":"c","lines":[],"ordered_at":"yesterday"}"#.to_owned(), "ordered_at"),
    ];
    for (path, body, field) in cases {
        client.post_raw(path, &[JSON], body).await.problem(400, "invalid-request", field);
    }
    client.post(place, json!({ "customer": "c", "lines": [] })).await.rejected("no_lines");
    for id in [".", ".."] {
        let data = json!({ "name": "A", "price_cents": 1, "stock": 1 });
        let line = client.batch(&[batch_line("products", id, "register", data)]).await.remove(0);
        assert_eq!((&line["status"], &line["type"]), (&json!(400), &json!("/problems/invalid-request")), "{line}");
        assert!(line["detail"].as_str().unwrap().starts_with("id: "), "{line}");
    }
    assert_eq!(read_log(&shop).await, []);
}

#[tokio::test]
async fn a_malformed_request_is_refused_by_the_status_that_fits() {
    let shop = Shop::new(2).await;
    let service = shop.command_api().await;
    let client = service.client();
    let register = "/v1/products/cd/register";
    let body = r#"{"name":"A","price_cents":1,"stock":1}"#;

    client.post_raw(register, &[JSON], vec![b' '; 64 * 1024 + 1]).await.problem(413, "too-large", "64 KiB");
    client.post_raw(register, &[], body).await.problem(415, "unsupported-media-type", "application/json");
    let text = [("content-type", "text/plain")];
    client.post_raw(register, &text, body).await.problem(415, "unsupported-media-type", "application/json");
    client.post_raw("/v1/baskets/b-1/fill", &[JSON], body).await.problem(404, "not-found", "aggregate");
    client.post_raw("/v1/products/cd/paint", &[JSON], body).await.problem(404, "not-found", "");
    client.post_raw("/v1/products", &[JSON], body).await.problem(404, "not-found", "");
    for id in ["a%20b", "%C3%A4", "a%00b", "a%2Fb", &"x".repeat(129)] {
        let path = format!("/v1/products/{id}/register");
        client.post_raw(&path, &[JSON], body).await.problem(400, "invalid-request", "id");
    }
    client.get(register).await.problem(405, "method-not-allowed", "");
    for (header, value) in [
        ("idempotency-key", "two words"),
        ("idempotency-key", "\"unfinished"),
        ("if-match", "7"),
        ("if-match", "*, \"7\""),
        ("idempotency-key", ""),
        ("if-none-match", "\"7\""),
    ] {
        client.post_raw(register, &[JSON, (header, value)], body).await.problem(400, "invalid-request", "");
    }
    let keys = [JSON, ("idempotency-key", "a"), ("idempotency-key", "b")];
    client.post_raw(register, &keys, body).await.problem(400, "invalid-request", "two different");
    let gzip = [JSON, ("content-encoding", "gzip")];
    client.post_raw(register, &gzip, body).await.problem(415, "unsupported-media-type", "Content-Encoding");
    let both = [JSON, ("if-match", "\"7\""), ("if-none-match", "*")];
    client.post_raw(register, &both, body).await.problem(400, "invalid-request", "");
    assert_eq!(read_log(&shop).await, []);
}

/// Returns keys with timestamps outside the window, one in the past and one in the future.
fn keys_of_another_time() -> [String; 2] {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let key = |at: Duration| Uuid::new_v7(Timestamp::from_unix(NoContext, at.as_secs(), 0)).to_string();
    [key(now - Duration::from_secs(3600)), key(now + Duration::from_secs(600))]
}

/// Path, headers, body, and the expected status of the answer or of its line.
type Fault = (&'static str, Vec<(&'static str, String)>, String, u64);

/// Returns requests with one fault each.
fn faults() -> Vec<Fault> {
    let json = |name: &'static str, value: &str| vec![("content-type", JSON.1.to_owned()), (name, value.to_owned())];
    let (register, reserve) = ("/v1/products/cd/register", "/v1/products/cd/reserve");
    let data = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    let body = data.to_string();
    let mut faults = vec![
        (register, json("x", ""), " ".repeat(64 * 1024 + 1), 413),
        (register, json("x", ""), r#"{"name":"A"}"#.to_owned(), 400),
        (reserve, json("x", ""), r#"{"order":"o","quantity":1,"amount_cents":1}"#.to_owned(), 400),
        ("/v1/products/a%20b/register", json("x", ""), body.clone(), 400),
        ("/v1/products/cd/paint", json("x", ""), body.clone(), 404),
        ("/v1/baskets/cd/register", json("x", ""), body.clone(), 404),
        (register, vec![("content-type", "text/plain".to_owned())], body.clone(), 415),
        (register, json("content-encoding", "gzip"), body.clone(), 415),
        (register, json("idempotency-key", "two words"), body.clone(), 400),
        (register, json("if-match", "7"), body.clone(), 400),
        (register, json("if-none-match", "\"7\""), body.clone(), 400),
        ("/v1/commands", vec![("content-type", JSON.1.to_owned())], "{}".to_owned(), 415),
        ("/v1/commands", vec![("content-type", NDJSON.1.to_owned())], "{}\n".repeat(10_001), 413),
        ("/v1/commands", vec![("content-type", NDJSON.1.to_owned())], " ".repeat(8 * 1024 * 1024 + 1), 413),
    ];
    faults.extend(keys_of_another_time().map(|key| (register, json("idempotency-key", &key), body.clone(), 409)));
    let line = |field: &str, value: Value| {
        let mut line = batch_line("products", "cd", "register", data.clone());
        line[field] = value;
        line.to_string()
    };
    let lines = [
        (line("id", json!("a b")), 400),
        (line("aggregate", json!("baskets")), 404),
        (line("command", json!("paint")), 404),
        (line("data", json!({ "name": "x".repeat(64 * 1024) })), 413),
        (line("data", json!({ "name": "A" })), 400),
        (line("key", json!("two words")), 400),
        (line("if_match", json!("seven")), 400),
        (line("colour", json!("blue")), 400),
        (line("cause", json!("an event")), 400),
        (line("cause", json!("0-1-2\0")), 400),
    ];
    let expired = keys_of_another_time().map(|key| (line("key", json!(key)), 409));
    let batch = |(line, status)| ("/v1/commands", vec![("content-type", NDJSON.1.to_owned())], line, status);
    faults.extend(lines.into_iter().chain(expired).map(batch));
    faults
}

#[tokio::test]
async fn what_one_listener_refuses_the_other_one_refuses_by_the_same_status() {
    let shop = Shop::new(1).await;
    let service = shop.command_api().await;
    let bearer = ("authorization", format!("Bearer {SERVICE_TOKEN}"));
    for (path, headers, body, status) in faults() {
        for client in [service.client(), service.internal_client()] {
            let headers: Vec<_> =
                headers.iter().chain([&bearer]).map(|(name, value)| (*name, value.as_str())).collect();
            let answer = client.post_raw(path, &headers, body.clone()).await;
            let told = serde_json::from_str::<Value>(&answer.text).unwrap()["status"].clone();
            let start: String = body.chars().take(200).collect();
            assert_eq!(told, status, "{path} {headers:?} {start}: {answer:?}");
        }
    }
    assert_eq!(read_log(&shop).await, []);
}
