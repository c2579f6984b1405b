//! `POST /v1/commands`: many commands, each with an answer of its own.

use serde_json::{Value, json};

use crate::fixture::{Shop, batch_line, read_log};

const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

fn place(id: &str) -> Value {
    let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 1177 }]);
    batch_line("orders", id, "place", json!({ "customer": "c-1", "lines": lines }))
}

#[tokio::test]
async fn lines_are_answered_in_their_order_and_decided_in_it_for_one_aggregate() {
    let shop = Shop::new(3).await;
    let service = shop.command_api().await;
    let mut lines = vec![batch_line("products", "cd", "register", json!({"name": "A", "price_cents": 1, "stock": 50}))];
    for n in 0..100 {
        lines.push(place(&format!("o-{n}")));
        lines.push(batch_line("products", "cd", "reserve", json!({ "order": format!("o-{n}"), "quantity": 1 })));
    }
    let answers = service.client().batch(&lines).await;
    assert_eq!(answers.len(), lines.len());
    for (line, answer) in lines.iter().zip(&answers) {
        assert_eq!(line["id"], answer["id"]);
    }
    let reserved: Vec<_> = answers.iter().filter(|answer| answer["id"] == "cd").skip(1).collect();
    for (n, answer) in (0..).zip(reserved) {
        match n {
            0..50 => assert_eq!((&answer["status"], &answer["version"]), (&json!(200), &json!(n + 2))),
            _ => assert_eq!((&answer["status"], &answer["rejection"]), (&json!(422), &json!("out_of_stock"))),
        }
    }
    assert_eq!(read_log(&shop).await.len(), 1 + 100 + 50);
}

#[tokio::test]
async fn a_line_that_fails_fails_alone() {
    let shop = Shop::new(2).await;
    let service = shop.command_api().await;
    let lines = [
        place("o-1").to_string(),
        "{".to_owned(),
        json!({ "aggregate": "baskets", "id": "b-1", "command": "fill" }).to_string(),
        json!({ "aggregate": "orders", "id": "o-2", "command": "place", "data": {}, "colour": 1 }).to_string(),
        batch_line("orders", "o-2", "place", json!({ "customer": "c" })).to_string(),
        batch_line("orders", "o-2", "confirm-line", json!({ "product": "cd" })).to_string(),
        batch_line("orders", "o 2", "place", json!({})).to_string(),
        place("o-3").to_string(),
    ];
    let answer = service.client().post_raw("/v1/commands", &[NDJSON], lines.join("\n")).await;
    let statuses: Vec<Value> =
        answer.text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["status"].clone()).collect();
    assert_eq!(statuses, [200, 400, 404, 400, 400, 404, 400, 200]);
    let log: Vec<_> = read_log(&shop).await.into_iter().map(|commit| commit.aggregate).collect();
    assert_eq!(log.len(), 2, "{log:?}");
}

#[tokio::test]
async fn a_repeated_batch_changes_nothing_and_says_so() {
    let shop = Shop::new(2).await;
    let service = shop.command_api().await;
    let lines: Vec<Value> = (0..50)
        .map(|n| {
            let mut line = place(&format!("o-{n}"));
            line["key"] = json!(format!("k-{n}"));
            line
        })
        .collect();
    let first = service.client().batch(&lines).await;
    let again = service.client().batch(&lines).await;
    for (first, again) in first.iter().zip(&again) {
        assert_eq!((&again["replayed"], &again["token"]), (&json!(true), &first["token"]));
        assert_eq!(first["idempotency_key"], again["idempotency_key"]);
    }
    assert_eq!(read_log(&shop).await.len(), 50);
}

#[tokio::test]
async fn a_batch_is_bounded_in_lines_and_bytes() {
    let shop = Shop::new(1).await;
    let service = shop.command_api().await;
    let client = service.client();
    client.post_raw("/v1/commands", &[NDJSON], "{}\n".repeat(10_001)).await.problem(413, "too-large", "10,000");
    client.post_raw("/v1/commands", &[NDJSON], vec![b' '; 8 * 1024 * 1024 + 1]).await.problem(
        413,
        "too-large",
        "8 MiB",
    );
    let json = [("content-type", "application/json")];
    client.post_raw("/v1/commands", &json, "{}").await.problem(415, "unsupported-media-type", "ndjson");
    assert_eq!(read_log(&shop).await, []);
}
