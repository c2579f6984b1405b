//! `POST /v1/commands`: many commands, each with its own answer.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::fixture::{Client, DEADLINE, Proxy, Service, Shop, batch_line, eventually, pause, read_log};

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

/// Registers products of every partition through an instance, which knows every owner afterwards.
async fn register_all(client: &Client, count: usize) {
    let data = json!({ "name": "A", "price_cents": 1, "stock": 0 });
    for n in 0..count {
        let path = format!("/v1/products/cd-{n}/register");
        eventually("the owner is known", async || (client.post(&path, data.clone()).await.status == 200).then_some(()))
            .await;
    }
}

/// Asserts that after a 503 all later lines of the same product are 503, too, and returns the number of refused lines.
fn no_line_overtakes(answers: &[Value]) -> usize {
    let mut refused = HashSet::new();
    for (number, answer) in answers.iter().enumerate() {
        let id = answer["id"].as_str().unwrap();
        if answer["status"] == 503 {
            refused.insert(id);
        } else {
            assert!(answer["status"] == 200 && !refused.contains(id), "line {number} overtook: {answer}");
        }
    }
    answers.iter().filter(|answer| answer["status"] == 503).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_overtakes_a_refused_one_though_the_link_to_its_owner_breaks_again_and_again() {
    let shop = Shop::new(2).await;
    let internal = Proxy::to("127.0.0.1:0").await;
    let link = Proxy::to(&internal.addr.to_string()).await;
    link.restore().await;
    let env = shop.write_env([
        ("INTERNAL_ADDR", internal.addr.to_string()),
        ("INTERNAL_URL", format!("http://{}", link.addr)),
        ("PARTITIONS", "0".to_owned()),
    ]);
    let owner = Service::command_api(&env).await;
    owner.wait_ready().await;
    let other = shop.command_api_for("1").await;
    register_all(&other.client(), 300).await;
    let line = |n| batch_line("products", &format!("cd-{}", n % 300), "restock", json!({ "quantity": 1 }));
    let lines: Vec<_> = (0..6_000).map(line).collect();
    let breaking = async {
        loop {
            pause().await;
            link.cut().await;
            link.restore().await;
        }
    };
    let told = async {
        let (mut refused, mut taken) = (0, 0);
        while refused < 2_000 || taken < 2_000 {
            let answers = other.client().batch(&lines).await;
            let away = no_line_overtakes(&answers);
            (refused, taken) = (refused + away, taken + answers.len() - away);
        }
    };
    tokio::select! {
        told = tokio::time::timeout(DEADLINE, told) => told.expect("the link was both up and down often enough"),
        () = breaking => {}
    }
    owner.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_overtakes_one_that_came_before_its_partition_had_an_owner() {
    let shop = Shop::new(2).await;
    let here = shop.command_api_for("0").await;
    let data = json!({ "name": "A", "price_cents": 1, "stock": 0 });
    let line = |n| batch_line("products", &format!("cd-{}", n % 300), "register", data.clone());
    let lines: Vec<_> = (0..6_000).map(line).collect();
    let client = here.client();
    assert!(
        no_line_overtakes(&client.batch(&lines).await) > 0,
        "no line was refused although one partition has no owner"
    );
    let _other = shop.start_command_api("1").await;
    eventually("both partitions have owners", async || {
        (no_line_overtakes(&client.batch(&lines).await) == 0).then_some(())
    })
    .await;
}

async fn suspicions(service: &Service) -> u64 {
    let metrics = service.admin_client().get("/metrics").await.text;
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("stampede_suspicions_total{"));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn a_line_as_long_as_a_whole_batch_is_refused_and_costs_the_link_to_its_owner_nothing() {
    let shop = Shop::new(2).await;
    let services = [shop.start_command_api("0").await, shop.start_command_api("1").await];
    for service in &services {
        service.wait_ready().await;
        register_all(&service.client(), 8).await;
    }
    // The answer names an unknown field, however long it is.
    let line = |bytes: usize| {
        let (head, tail) = (r#"{"aggregate":"sales","id":"q","command":"schedule","data":{""#, r#"":1}}"#);
        format!("{head}{}{tail}", "u".repeat(bytes - head.len() - tail.len()))
    };
    // Each instance owns the partition that the other one forwards to.
    for service in &services {
        let before = suspicions(service).await;
        for (bytes, status) in [(8 * 1024 * 1024, 413), (64 * 1024, 400)] {
            let answer = service.client().post_raw("/v1/commands", &[NDJSON], line(bytes)).await;
            assert_eq!(answer.json()["status"], status, "{answer:?}");
            assert!(answer.text.len() < 140_000, "{} bytes", answer.text.len());
        }
        for n in 0..8 {
            let path = format!("/v1/products/cd-{n}/restock");
            service.client().post(&path, json!({ "quantity": 1 })).await.accepted(&["product.restocked.v1"]);
        }
        assert_eq!(suspicions(service).await, before);
    }
}
