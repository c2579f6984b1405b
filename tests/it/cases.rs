//! Faults known from other systems of this kind, and the guarantees that exclude them here.

mod connections;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::fixture::{Answer, batch_line, eventually};
use crate::reactions::Whole;

const JSON: (&str, &str) = ("content-type", "application/json");

/// Returns a query's answer that reflects everything that the token names.
async fn shown(whole: &Whole, path: &str, token: &str) -> Answer {
    whole.queries.get_with(path, &[("consistency-token", token), ("prefer", "wait=10")]).await
}

fn count(history: &Answer, event: &str) -> usize {
    history.json().as_array().unwrap().iter().filter(|one| one["type"] == event).count()
}

#[tokio::test]
async fn a_payment_is_taken_once_however_often_and_late_it_is_reported() {
    let whole = Whole::new(600).await;
    whole.register("cd", 5).await;
    whole.place("o", &[("cd", 2)]).await;
    whole.comes_to("/v1/orders/o", json!({ "status": "confirmed" })).await;
    // A payment provider repeats its call until it succeeds, each time under another key.
    let answers = futures_util::future::join_all((0..3).map(|_| whole.pay("o", 1000))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.json()["events"] == json!(["order.paid.v2"])).count(), 1);
    whole.commands.post("/v1/orders/o/ship", json!({})).await.accepted(&["order.shipped.v1"]);
    let again = whole.pay("o", 1000).await.accepted(&[]);
    let other = json!({ "payment": "another", "amount_cents": 1000 });
    whole.commands.post("/v1/orders/o/pay", other).await.rejected("already_paid");
    assert_eq!(count(&shown(&whole, "/v1/orders/o/history", &again.token()).await, "order.paid.v2"), 1);

    whole.place("cancelled", &[("cd", 1)]).await;
    whole.comes_to("/v1/orders/cancelled", json!({ "status": "confirmed" })).await;
    let pay = json!({ "payment": "p", "amount_cents": 500 });
    let key = [("idempotency-key", "the-first")];
    let first = whole.commands.post_with("/v1/orders/cancelled/pay", &key, pay.clone()).await;
    whole.commands.post("/v1/orders/cancelled/cancel", json!({})).await.accepted(&["order.cancelled.v2"]);
    let replayed = whole.commands.post_with("/v1/orders/cancelled/pay", &key, pay.clone()).await;
    assert_eq!((replayed.json(), replayed.header("idempotent-replayed")), (first.json(), Some("true")));
    let refused = whole.commands.post("/v1/orders/cancelled/pay", pay).await.rejected("cancelled_after_payment");
    let history = shown(&whole, "/v1/orders/cancelled/history", &refused.token()).await;
    assert_eq!((count(&history, "order.paid.v2"), count(&history, "order.cancelled.v2")), (1, 1));
    whole.comes_to("/v1/products/cd", json!({ "available": 2, "reserved": 0, "sold": 3 })).await;
}

#[tokio::test]
async fn money_that_comes_after_an_order_ended_takes_nothing_from_who_has_its_units_now() {
    let whole = Whole::new(600).await;
    whole.register("last", 1).await;
    whole.place("late", &[("last", 1)]).await;
    whole.comes_to("/v1/orders/late", json!({ "status": "confirmed" })).await;
    whole.commands.post("/v1/orders/late/cancel", json!({})).await.accepted(&["order.cancelled.v2"]);
    whole.comes_to("/v1/products/last", json!({ "available": 1 })).await;
    whole.place("next", &[("last", 1)]).await;
    whole.comes_to("/v1/orders/next", json!({ "status": "confirmed" })).await;
    whole.pay("late", 500).await.rejected("already_cancelled");
    whole.pay("next", 500).await.accepted(&["order.paid.v2"]);
    whole.comes_to("/v1/products/last", json!({ "stock": 0, "reserved": 0, "sold": 1 })).await;
}

#[tokio::test]
async fn orders_that_are_cancelled_as_they_are_placed_leave_nothing_reserved() {
    let whole = Whole::new(600).await;
    whole.register("cd", 10).await;
    let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 500 }]);
    let orders: Vec<_> = (0..8).map(|order| format!("o-{order}")).collect();
    let of = |order: &String| {
        let place = json!({ "customer": "ann", "lines": lines });
        [batch_line("orders", order, "place", place), batch_line("orders", order, "cancel", json!({}))]
    };
    let answers = whole.commands.batch(&orders.iter().flat_map(of).collect::<Vec<_>>()).await;
    assert!(answers.iter().all(|answer| answer["status"] == 200), "{answers:?}");
    // The product was registered; then each order's unit was reserved and released.
    let row = eventually("each reservation has been released", async || {
        let row = whole.queries.get("/v1/products/cd").await.json();
        (row["version"] == 1 + 2 * 8).then_some(row)
    })
    .await;
    assert_eq!((&row["data"]["available"], &row["data"]["reserved"]), (&json!(10), &json!(0)), "{row}");
    for order in orders {
        whole.comes_to(&format!("/v1/orders/{order}"), json!({ "status": "cancelled" })).await;
    }
}

#[tokio::test]
async fn a_limit_an_order_holds_over_all_lines_of_one_product() {
    let whole = Whole::new(600).await;
    let data = json!({ "name": "cd", "price_cents": 500, "stock": 10, "limit_per_order": 2 });
    whole.commands.post("/v1/products/cd/register", data).await.accepted(&["product.registered.v1"]);
    whole.place("over", &[("cd", 2), ("cd", 1)]).await.accepted(&["order.placed.v1"]);
    whole.place("within", &[("cd", 1), ("cd", 1)]).await.accepted(&["order.placed.v1"]);
    whole.comes_to("/v1/orders/over", json!({ "status": "rejected", "reason": "over_limit" })).await;
    whole.comes_to("/v1/orders/within", json!({ "status": "confirmed" })).await;
    whole.comes_to("/v1/products/cd", json!({ "available": 8, "reserved": 2 })).await;
}

#[tokio::test]
async fn claims_at_the_same_moment_pass_neither_the_units_nor_the_limit() {
    let whole = Whole::new(600).await;
    whole.register("cd", 3).await;
    whole.schedule("drop", 3, 2).await;
    whole.comes_to("/v1/sales/drop", json!({ "status": "open", "left": 3 })).await;
    let claims = (0..10).map(|claim| {
        let (whole, customer) = (&whole, if claim < 6 { "ann" } else { "bob" });
        async move { (customer, whole.claim(&format!("o-{claim}"), customer, 1).await) }
    });
    let answers = futures_util::future::join_all(claims).await;
    let had = |who: &str| answers.iter().filter(|(customer, answer)| *customer == who && answer.status == 200).count();
    assert!(had("ann") <= 2 && had("bob") <= 2 && had("ann") + had("bob") == 3, "{answers:?}");
    let others = answers.iter().filter(|(_, answer)| answer.status != 200);
    for (_, answer) in others {
        assert!(["over_limit", "sold_out"].contains(&answer.json()["rejection"].as_str().unwrap()), "{answer:?}");
    }
    whole.comes_to("/v1/sales/drop", json!({ "claimed": 3, "left": 0, "customers": 2 })).await;
}

#[tokio::test]
async fn an_import_that_is_run_again_resets_nothing() {
    let whole = Whole::new(600).await;
    let register = |id: &str, stock: Value| {
        batch_line("products", id, "register", json!({ "name": "A", "price_cents": 500, "stock": stock }))
    };
    let import = [register("good", json!(10)), register("bad", json!("ten"))];
    let statuses = |answers: &[Value]| answers.iter().map(|answer| answer["status"].clone()).collect::<Vec<_>>();
    assert_eq!(statuses(&whole.commands.batch(&import).await), [200, 400]);
    let send = async |command: &str, data| whole.commands.post(&format!("/v1/products/good/{command}"), data).await;
    send("reprice", json!({ "price_cents": 900 })).await.accepted(&["product.repriced.v1"]);
    send("restock", json!({ "quantity": 7 })).await.accepted(&["product.restocked.v1"]);
    send("reserve", json!({ "order": "o", "quantity": 3 })).await.accepted(&["product.reserved.v2"]);
    let again = whole.commands.batch(&import).await;
    assert_eq!((statuses(&again), &again[0]["events"]), (vec![json!(200), json!(400)], &json!([])));
    let row = shown(&whole, "/v1/products/good", again[0]["token"].as_str().unwrap()).await.json()["data"].take();
    assert_eq!([&row["price_cents"], &row["available"], &row["reserved"]], [900, 14, 3]);
    whole.queries.get("/v1/products/bad").await.problem(404, "not-found", "bad");
}

#[tokio::test]
async fn a_sale_keeps_its_instants_however_they_are_written() {
    let whole = Whole::new(600).await;
    let schedule = async |sale: &str, opens_at: &str, closes_at: &str| {
        let data = json!({
            "product": "cd", "opens_at": opens_at, "closes_at": closes_at,
            "price_cents": 300, "units": 1, "limit_per_customer": 1,
        });
        whole.commands.post(&format!("/v1/sales/{sale}/schedule"), data).await
    };
    // 02:30 occurs twice, an hour apart, in the night in which clocks are set back.
    let scheduled = schedule("s", "2997-10-29T02:30:00+02:00", "2997-10-29T02:30:00+01:00").await;
    let token = scheduled.accepted(&["sale.scheduled.v1"]).token();
    let row = shown(&whole, "/v1/sales/s", &token).await.json()["data"].take();
    assert_eq!([&row["opens_at"], &row["closes_at"]], ["2997-10-29T00:30:00Z", "2997-10-29T01:30:00Z"]);
    schedule("s", "2997-10-29T00:30:00.0009+00:00", "2997-10-29t01:30:00z").await.accepted(&[]);
    for (opens, closes) in [
        ("2997-05-01T10:00:00Z", "2997-05-01T12:00:00+02:00"),
        ("2997-05-01T10:00:00Z", "2997-05-01T11:59:59+02:00"),
        ("2020-05-01T10:00:00Z", "2020-05-02T10:00:00Z"),
    ] {
        schedule("none", opens, closes).await.rejected("bad_window");
    }
}

#[tokio::test]
async fn an_order_counts_for_its_day_in_utc_and_a_range_has_both_of_its_ends() {
    let whole = Whole::new(600).await;
    let mut tokens = Vec::new();
    for (order, at, cents) in [
        ("a", "1971-01-01T23:59:59.999Z", 1),
        ("b", "1971-01-01T23:30:00-02:00", 10),
        ("c", "1971-01-03T01:30:00+02:00", 100),
        ("d", "1971-01-03T00:00:00Z", 1000),
    ] {
        let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": cents }]);
        let data = json!({ "customer": "ann", "lines": lines, "ordered_at": at });
        let path = format!("/v1/orders/{order}/record");
        tokens.push(whole.commands.post(&path, data).await.accepted(&["order.recorded.v1"]).token());
    }
    let token = tokens.join(",");
    let days = async |range: &str| {
        let rows = shown(&whole, &format!("/v1/revenue?{range}"), &token).await.json()["rows"].take();
        let day =
            |row: &Value| (row["key"].as_str().unwrap().to_owned(), row["data"]["amount_cents"].as_u64().unwrap());
        rows.as_array().unwrap().iter().map(day).collect::<Vec<_>>()
    };
    let all =
        [("1971-01-01", 1), ("1971-01-02", 110), ("1971-01-03", 1000)].map(|(day, cents)| (day.to_owned(), cents));
    assert_eq!(days("from=1971-01-01&to=1971-01-03").await, all);
    assert_eq!(days("from=1971-01-02&to=1971-01-02").await, all[1..2]);
    assert_eq!(days("from=1971-01-03&to=1971-01-01").await, []);
    whole.queries.get("/v1/revenue?from=1971-02-29").await.problem(400, "invalid-request", "from");
    let row = shown(&whole, "/v1/customers/ann", &token).await.json()["data"].take();
    assert_eq!([&row["first_order_at"], &row["last_order_at"]], ["1971-01-01T23:59:59.999Z", "1971-01-03T00:00:00Z"]);
}

#[tokio::test]
async fn units_and_cents_beyond_32_bits_are_exact() {
    let whole = Whole::new(600).await;
    whole.register("cd", 1_000_000_000).await;
    let restock =
        async |quantity: u32| whole.commands.post("/v1/products/cd/restock", json!({ "quantity": quantity })).await;
    for _ in 0..4 {
        restock(1_000_000_000).await.accepted(&["product.restocked.v1"]);
    }
    restock(1_000_000_001).await.problem(400, "invalid-request", "quantity");
    whole.comes_to("/v1/products/cd", json!({ "stock": 5_000_000_000_u64, "available": 5_000_000_000_u64 })).await;
    let line = json!({ "product": "cd", "quantity": 10_000_000, "amount_cents": 10_000_000_000_u64 });
    let data = json!({ "customer": "ann", "lines": vec![line; 100], "ordered_at": "1975-01-01T00:00:00Z" });
    let records: Vec<_> = (0..91).map(|n| batch_line("orders", &format!("o-{n}"), "record", data.clone())).collect();
    let answers = whole.commands.batch(&records).await;
    assert!(answers.iter().all(|answer| answer["status"] == 200), "{answers:?}");
    let sums = json!({ "orders": 91, "units": 91_000_000_000_u64, "amount_cents": 91_000_000_000_000_u64 });
    whole.comes_to("/v1/customers/ann", sums).await;
}

#[tokio::test]
async fn a_token_shows_its_command_by_head_after_a_refusal_and_beside_others() {
    let whole = Whole::new(600).await;
    whole.queries.get("/v1/products/cd").await.problem(404, "not-found", "cd");
    let register = json!({ "name": "A", "price_cents": 5, "stock": 1 });
    let token = whole.commands.post("/v1/products/cd/register", register.clone()).await.token();
    let fresh = [("consistency-token", &*token), ("prefer", "wait=10")];
    let head = whole.queries.try_send(reqwest::Method::HEAD, "/v1/products/cd", &fresh, None).await.unwrap();
    assert_eq!((head.status.as_u16(), head.header("etag"), &*head.text), (200, Some("\"1\""), ""));
    whole.commands.post("/v1/products/cd/restock", json!({ "quantity": 4 })).await.accepted(&["product.restocked.v1"]);
    let data = json!({ "order": "o", "quantity": 99 });
    let refused = whole.commands.post("/v1/products/cd/reserve", data).await.rejected("out_of_stock");
    assert_eq!(shown(&whole, "/v1/products/cd", &refused.token()).await.json()["data"]["stock"], 5);

    let lines: Vec<_> =
        (0..20).map(|n| batch_line("products", &format!("p-{n}"), "register", register.clone())).collect();
    let answers = whole.commands.batch(&lines).await;
    let tokens: Vec<_> = answers.iter().map(|answer| answer["token"].as_str().unwrap()).collect();
    for n in 0..20 {
        let path = format!("/v1/products/p-{n}");
        assert_eq!(shown(&whole, &path, &tokens.join(",")).await.status, 200, "{path}");
        let on_two_lines = [("consistency-token", tokens[n]), ("consistency-token", &*token), ("prefer", "wait=10")];
        assert_eq!(whole.queries.get_with(&path, &on_two_lines).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_name_comes_back_as_it_was_given() {
    let whole = Whole::new(600).await;
    let longest = "\u{1f4a5}".repeat(500);
    let names = [
        &*longest,
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
        "e\u{301}",
        "\u{e9}",
        "\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{202e}!",
        "a\u{2028}b\u{2029}c",
        "a\u{1}\u{1f}\u{7f}b",
        "  a\t\n ",
        "\"\\/</script>",
        "\u{10ffff}\u{fffe}",
    ];
    for (n, name) in names.iter().enumerate() {
        let path = format!("/v1/products/p-{n}");
        let data = json!({ "name": name, "price_cents": 1, "stock": 1 });
        let token = whole.commands.post(&format!("{path}/register"), data).await.token();
        let row = shown(&whole, &path, &token).await.json();
        let history = shown(&whole, &format!("{path}/history"), &token).await.json();
        assert_eq!((&row["data"]["name"], &history[0]["data"]["name"]), (&json!(name), &json!(name)));
    }
    let send = async |id: &str, name: &str| {
        let body = format!(r#"{{"name":"{name}","price_cents":1,"stock":1}}"#);
        whole.commands.post_raw(&format!("/v1/products/{id}/register"), &[JSON], body).await
    };
    send("escaped", r"\ud83d\udca5").await.accepted(&["product.registered.v1"]);
    send("half", r"\ud83d").await.problem(400, "invalid-request", "");
    send("long", &format!("{longest}x")).await.problem(400, "invalid-request", "name");
}

/// Visits every object of a document.
fn visit(json: &Value, look: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match json {
        Value::Object(members) => {
            look(members);
            members.values().for_each(|value| visit(value, look));
        }
        Value::Array(items) => items.iter().for_each(|item| visit(item, look)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn the_description_says_what_generators_of_clients_know_and_its_defaults_are_taken() {
    let whole = Whole::new(600).await;
    whole.register("cd", 5).await;
    let is_kept = async || (whole.queries.get("/v1/products/cd/history").await.status == 200).then_some(());
    eventually("the product has a history", is_kept).await;
    let api = whole.queries.get("/openapi.json").await.json();
    visit(&api, &mut |object| {
        assert!(!object.contains_key("const"), "client generators do not support const: {object:?}")
    });
    let paths = api["paths"].as_object().unwrap();
    let operations = || paths.values().flat_map(|methods| methods.as_object().unwrap().values());
    let plain = |id: &str| id.to_lowercase().replace(|letter: char| !letter.is_alphanumeric(), "");
    let names: BTreeSet<_> = operations().map(|one| plain(one["operationId"].as_str().unwrap())).collect();
    assert_eq!(names.len(), operations().count(), "operation ids collide as identifiers of some language");

    // Generated clients send declared defaults.
    for (path, query) in [
        ("/v1/products/{id}/history", "version=1"),
        ("/v1/products/{id}/history", "at=2999-01-01T00:00:00Z"),
        ("/v1/products/{id}/history", ""),
        ("/v1/products/{id}/as-of", "version=1"),
        ("/v1/views/{view}", "discontinued=false"),
        ("/v1/revenue", "from=1997-01-01"),
    ] {
        let mut query = query.to_owned();
        for parameter in paths[path]["get"]["parameters"].as_array().unwrap() {
            let name = parameter["$ref"].as_str().map(|reference| reference.trim_start_matches('#'));
            let parameter = name.map_or(parameter, |pointer| api.pointer(pointer).unwrap());
            if let (Some("query"), Some(default)) = (parameter["in"].as_str(), parameter["schema"].get("default")) {
                let value = default.as_str().map_or(default.to_string(), str::to_owned);
                query += &format!("&{}={value}", parameter["name"].as_str().unwrap());
            }
        }
        let path = path.replace("{id}", "cd").replace("{view}", "product");
        let answer = whole.queries.get(&format!("{path}?{}", query.trim_start_matches('&'))).await;
        assert_eq!(answer.status, 200, "{path}?{query}: {answer:?}");
    }
}
