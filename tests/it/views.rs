//! The path from a command to the rows that queries show.

use std::collections::BTreeMap;

use schemas::cache::{Making, Shown};
use schemas::time::parse_rfc3339;
use schemas::views::VIEWS;
use serde_json::{Value, json};

use crate::fixture::{Answer, Client, Proxy, Service, Shop, batch_line, eventually};

struct Whole {
    shop: Shop,
    commands: Client,
    queries: Client,
    projector: Option<Service>,
    query_api: Service,
    command_api: Service,
}

impl Whole {
    async fn new() -> Self {
        let shop = Shop::with_views(3).await;
        let command_api = shop.command_api().await;
        let projector = shop.projector().await;
        let query_api = shop.query_api().await;
        let (commands, queries) = (command_api.client(), query_api.client());
        Self { shop, commands, queries, projector: Some(projector), query_api, command_api }
    }

    /// Returns the answer to a query that must reflect this token.
    async fn get(&self, path: &str, token: &str) -> Answer {
        self.queries.get_with(path, &[("consistency-token", token), ("prefer", "wait=10")]).await
    }

    async fn data(&self, path: &str, token: &str) -> Value {
        let answer = self.get(path, token).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()["data"].clone()
    }

    async fn record(&self, order: &str, customer: &str, day: &str, units: u32, cents: u64) -> String {
        let lines = json!([{ "product": "cd", "quantity": units, "amount_cents": cents }]);
        let data = json!({ "customer": customer, "lines": lines, "ordered_at": format!("{day}T12:00:00Z") });
        self.commands.post(&format!("/v1/orders/{order}/record"), data).await.accepted(&["order.recorded.v1"]).token()
    }
}

fn record() -> Value {
    json!({ "name": "Kind of Blue", "price_cents": 1177, "stock": 10 })
}

#[tokio::test]
async fn a_query_with_a_commands_token_shows_what_the_command_did() {
    let whole = Whole::new().await;
    let mut token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    for order in 1..=10 {
        let reserve = json!({ "order": format!("o-{order}"), "quantity": 1 });
        token = whole.commands.post("/v1/products/cd/reserve", reserve).await.token();
        let data = whole.data("/v1/products/cd", &token).await;
        assert_eq!((&data["available"], &data["reserved"]), (&json!(10 - order), &json!(order)));
    }
    let answer = whole.get("/v1/products/cd", &token).await;
    assert_eq!(answer.header("etag"), Some("\"11\""));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(
        answer.json(),
        json!({ "key": "cd", "version": 11, "data": {
            "name": "Kind of Blue", "price_cents": 1177, "stock": 10, "available": 0, "reserved": 10, "sold": 0,
            "discontinued": false
        }})
    );
    assert_eq!(whole.get("/v1/views/product/cd", &token).await.text, answer.text);
    // The token of an answer is accepted by the next query, too.
    whole.get("/v1/products/cd", &answer.token()).await.json();
}

#[tokio::test]
async fn a_view_of_many_aggregates_is_the_sum_of_what_happened_to_each() {
    let whole = Whole::new().await;
    let mut tokens = Vec::new();
    for order in 0..20 {
        let day = if order % 2 == 0 { "1997-01-01" } else { "1997-01-02" };
        tokens.push(whole.record(&format!("o-{order}"), "ann", day, 2, 1000 + order).await);
    }
    tokens.push(whole.record("of-bob", "bob", "1997-01-02", 1, 5).await);
    // A cancelled order no longer counts, but still determines the dates of the first and the last order.
    let cancelled = whole.commands.post("/v1/orders/o-19/cancel", json!({ "reason": "too late" })).await;
    tokens.push(cancelled.accepted(&["order.cancelled.v2"]).token());
    let token = tokens.join(",");
    assert_eq!(
        whole.data("/v1/customers/ann", &token).await,
        json!({ "orders": 19, "units": 38, "amount_cents": 19_171, "first_order_at": "1997-01-01T12:00:00Z",
                "last_order_at": "1997-01-02T12:00:00Z" })
    );
    let order = whole.data("/v1/orders/o-19", &token).await;
    assert_eq!((&order["status"], &order["reason"]), (&json!("cancelled"), &json!("too late")));
    let days = whole.get("/v1/revenue?from=1997-01-02&to=1997-01-02", &token).await.json();
    let sums = json!({ "orders": 10, "units": 19, "amount_cents": 9086 });
    assert_eq!((&days["rows"][0]["data"], &days["next"]), (&sums, &Value::Null));
    let first = whole.get("/v1/views/revenue?limit=1", &token).await.json();
    assert_eq!(first["rows"][0]["key"], "1997-01-01");
    let after = first["next"].as_str().unwrap();
    let second = whole.get(&format!("/v1/revenue?limit=1&after={after}"), &token).await.json();
    assert_eq!((&second["rows"][0]["data"], &second["next"]), (&sums, &Value::Null));
}

#[tokio::test]
async fn the_history_of_an_aggregate_is_its_events_oldest_first() {
    let whole = Whole::new().await;
    let key =
        [("idempotency-key", "the-key"), ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")];
    whole.commands.post_with("/v1/products/cd/register", &key, record()).await;
    let no_trace = [("traceparent", "ann@example.org")];
    let reprice = json!({ "price_cents": 999 });
    let token = whole.commands.post_with("/v1/products/cd/reprice", &no_trace, reprice).await.token();
    let answer = whole.get("/v1/products/cd/history", &token).await;
    assert_eq!(answer.header("content-type"), Some("application/cloudevents-batch+json"));
    let events = answer.json();
    assert_eq!(events.as_array().unwrap().len(), 2);
    assert_eq!((&events[0]["type"], &events[0]["version"]), (&json!("product.registered.v1"), &json!(1)));
    assert_eq!((&events[0]["commandid"], &events[0]["traceparent"]), (&json!(key[0].1), &json!(key[1].1)));
    assert_eq!((&events[1]["subject"], &events[1]["data"]), (&json!("product/cd"), &json!({ "price_cents": 999 })));
    assert_eq!(events[1].get("traceparent"), None, "an invalid trace context is stored");
    let page = whole.get("/v1/products/cd/history?limit=1", &token).await;
    assert_eq!(page.header("link"), Some("</v1/products/cd/history?after=1&limit=1>; rel=\"next\""));
    assert_eq!(page.json().as_array().unwrap().len(), 1);
    assert_eq!(whole.get("/v1/products/cd/history?after=1", &token).await.json()[0], events[1]);
    assert_eq!(whole.get("/v1/products/cd/history?after=2", &token).await.json(), json!([]));
    for after in ["", "?after=", "?after=0", "?after=1", "?after=99"] {
        let path = format!("/v1/products/none/history{after}");
        whole.get(&path, &token).await.problem(404, "not-found", "none");
    }
}

#[tokio::test]
async fn the_state_of_an_aggregate_at_a_version_or_a_time_is_the_row_of_then() {
    let whole = Whole::new().await;
    let mut rows = Vec::new();
    let mut token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    for price in 1..=5 {
        rows.push(whole.get("/v1/products/cd", &token).await);
        token = whole.commands.post("/v1/products/cd/reprice", json!({ "price_cents": price })).await.token();
    }
    let events = whole.get("/v1/products/cd/history", &token).await.json();
    for (version, row) in (1..).zip(&rows) {
        let then = whole.get(&format!("/v1/products/cd/as-of?version={version}"), &token).await;
        assert_eq!((&then.text, then.header("etag")), (&row.text, row.header("etag")));
        assert_eq!(then.header("deprecation"), None);
        // A query at a time shows the last event of that time.
        let at = |event: &Value| parse_rfc3339(event["time"].as_str().unwrap()).unwrap();
        let (time, moment) = (events[version - 1]["time"].as_str().unwrap(), at(&events[version - 1]));
        let last = events.as_array().unwrap().iter().filter(|event| at(event) <= moment).count();
        let of_time = whole.get(&format!("/v1/products/cd/as-of?at={time}"), &token).await;
        assert_eq!(of_time.json()["version"], last);
        // The former routes still work, with the defaults that generated clients send.
        for (query, now) in [(format!("version={version}"), &then), (format!("at={time}&limit=1000"), &of_time)] {
            let before = whole.get(&format!("/v1/products/cd/history?{query}"), &token).await;
            assert_eq!((&before.text, before.header("etag")), (&now.text, now.header("etag")), "{query}");
            assert_eq!(before.header("deprecation"), Some("@1795737600"), "{query}");
        }
    }
    for (when, said) in
        [("version=0", "did not exist"), ("at=1997-01-01T00:00:00Z", "did not exist"), ("version=7", "the newest is 6")]
    {
        whole.get(&format!("/v1/products/cd/as-of?{when}"), &token).await.problem(404, "not-found", said);
    }
    whole.get("/v1/products/none/as-of?version=1", &token).await.problem(404, "not-found", "newest is 0");

    let placed = whole.record("o-1", "ann", "1997-01-01", 1, 5).await;
    let row = whole.get("/v1/orders/o-1", &placed).await;
    let cancelled = whole.commands.post("/v1/orders/o-1/cancel", json!({})).await.token();
    assert_eq!(whole.get("/v1/orders/o-1/as-of?version=1", &cancelled).await.text, row.text);
}

#[tokio::test]
async fn a_row_of_long_ago_is_folded_from_ten_thousand_events_at_most_or_from_the_row_of_now() {
    let whole = Whole::new().await;
    let token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    assert_eq!(whole.get("/v1/products/cd/history", &token).await.status, 200);
    // The journal as after that many commands. The row is still that of the first event.
    let events = r#"
        INSERT INTO journal_tail
        SELECT (SELECT partition FROM journal_tail WHERE 'product/cd' = ANY (aggregates)), 1, 1024, array_agg(1024 + n), array_agg('product/cd'::text), array_agg(n), array_agg(1), array_agg(convert_to(format(
            'st1{"commit":{"command_id":"","at_ms":%s,"version":%s,"events":[{"type":"product.repriced.v1","data":{"price_cents":%s}}],"fingerprint":"0000000000000000"}}',
            (extract(epoch FROM now()) * 1000)::bigint, n, n
        ), 'UTF8')), array_agg(name_hash('product/cd')), array_agg(NULL::uuid)
        FROM generate_series(2, 10003) AS n"#;
    whole.shop.sql(events).await;
    let then = async |when: &str| whole.queries.get(&format!("/v1/products/cd/{when}")).await;
    assert_eq!(then("as-of?version=10001").await.json()["data"]["price_cents"], 10_001);
    for when in ["as-of?version=10002", "as-of?at=2100-01-01T00:00:00Z", "history?version=10002"] {
        then(when).await.problem(400, "invalid-request", "more than 10000 events");
    }
    then("as-of?at=1997-01-01T00:00:00Z").await.problem(404, "not-found", "did not exist then");
    whole.shop.sql("UPDATE product_rows SET version = 10002 WHERE key = 'cd'").await;
    for when in ["as-of?version=10003", "as-of?at=2100-01-01T00:00:00Z"] {
        let row = then(when).await.json();
        assert_eq!((&row["version"], &row["data"]["price_cents"]), (&json!(10_003), &json!(10_003)), "{when}");
    }
    then("as-of?version=20000").await.problem(404, "not-found", "the newest is 10003");
    // Before the row's version, the fold begins at the first event.
    assert_eq!(then("as-of?version=10000").await.json()["data"]["price_cents"], 10_000);
    then("as-of?version=10001").await.problem(400, "invalid-request", "more than 10000 events");
}

#[tokio::test]
async fn a_token_that_is_not_reached_in_time_is_not_yet_or_leniently_what_there_is() {
    let whole = Whole::new().await;
    let token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    whole.data("/v1/products/cd", &token).await;
    let (log_and_partition, offset) = token.rsplit_once('-').unwrap();
    let ahead = format!("{log_and_partition}-{}", offset.parse::<i64>().unwrap() + 1000);
    let strict = [("consistency-token", ahead.as_str()), ("prefer", "wait=0.1")];
    let not_yet = whole.queries.get_with("/v1/products/cd", &strict).await.problem(503, "not-yet", "");
    assert_eq!((not_yet.token(), not_yet.header("retry-after")), (token.clone(), Some("1")));
    let lenient = [strict[0], ("prefer", "wait=0.1, handling=lenient")];
    let answer = whole.queries.get_with("/v1/products/cd", &lenient).await;
    assert_eq!((answer.status.as_u16(), answer.token()), (200, token));
}

#[tokio::test]
async fn a_token_that_can_never_be_reached_is_refused() {
    let whole = Whole::new().await;
    let token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    let log = token.split_once('.').unwrap().0;
    let other = if log.starts_with('a') { "b" } else { "a" }.to_owned() + &log[1..];
    for token in ["nonsense".to_owned(), format!("{other}.0-1"), format!("{log}.3-1"), format!("{log}.0-")] {
        whole.get("/v1/products/cd", &token).await.problem(400, "invalid-request", "Token");
    }
}

#[tokio::test]
async fn what_a_client_has_already_is_not_sent_again() {
    let whole = Whole::new().await;
    let token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    whole.data("/v1/products/cd", &token).await;
    for tags in ["\"1\"", "W/\"1\"", "\"x\", \"1\"", "*"] {
        let answer = whole.queries.get_with("/v1/products/cd", &[("if-none-match", tags)]).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (304, ""), "{tags}");
        assert_eq!((answer.header("etag"), answer.token()), (Some("\"1\""), token.clone()));
    }
    let answer = whole.queries.get_with("/v1/products/cd", &[("if-none-match", "\"2\"")]).await;
    assert_eq!(answer.status, 200);
    let head = whole.queries.head("/v1/products/cd").await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), answer.header("content-length"));
}

#[tokio::test]
async fn a_malformed_query_is_refused() {
    let whole = Whole::new().await;
    for path in [
        "/v1/views/product?limit=0",
        "/v1/views/product?limit=1001",
        "/v1/views/product?limit=5&limit=6",
        "/v1/views/product?colour=blue",
        "/v1/views/product?from=1997-01-01",
        "/v1/views/product/a%20b",
        "/v1/products/cd?version=1",
        "/v1/products/a%00b",
        "/v1/products/cd/history?after=-1",
        "/v1/products/cd/history?after=x",
        "/v1/products/cd/history?version=-1",
        "/v1/products/cd/history?at=yesterday",
        "/v1/products/cd/history?version=1&at=1997-01-01T00:00:00Z",
        "/v1/products/cd/history?version=1&limit=0",
        "/v1/products/cd/as-of",
        "/v1/products/cd/as-of?version=",
        "/v1/products/cd/as-of?version=1&at=1997-01-01T00:00:00Z",
        "/v1/products/cd/as-of?version=1&after=1",
        "/v1/products/cd?_=1&x=1",
        "/v1/revenue?from=1997-13-01",
        "/v1/revenue?after=yesterday",
        "/v1/revenue?order=amount_cents",
        "/v1/views/product?order=colour",
        "/v1/views/product?discontinued=perhaps",
        "/v1/views/order?status=lost",
        "/v1/views/customer?order=-amount_cents",
        "/v1/customers/ann/orders?customer=bob",
        "/v1/customers/ann/orders?status=placed",
        "/v1/customers/ann/orders?order=key",
        "/v1/revenue-by-minute?from=1997-01-01%2010:00",
        "/v1/views/revenue_by_minute/1997-01-01t10:00",
        "/v1/customers/a%20b/orders",
        "/v1/views/revenue/1997-1-1",
        "/v1/views?x=1",
    ] {
        whole.queries.get(path).await.problem(400, "invalid-request", "");
    }
    for (path, named) in [("/v1/views/product?after=%zz", "after"), ("/v1/revenue?from=%FF&to=1", "from")] {
        whole.queries.get(path).await.problem(400, "invalid-request", named);
    }
    for path in ["/v1/products/none", "/v1/views/product", "/v1/products/none/history", "/v1/views"] {
        let condition = [("if-match", "\"1\"")];
        whole.queries.get_with(path, &condition).await.problem(400, "invalid-request", "If-Match");
    }
    // Ignored: a client's own parameters, a cursor without a value, a range.
    for path in ["/v1/views/product?after=&_=7&_=8", "/v1/revenue?_ts=1", "/v1/views?_=1", "/v1/views/product?after"] {
        assert_eq!(whole.queries.get_with(path, &[("range", "bytes=0-3")]).await.status, 200, "{path}");
    }
    for path in ["/v1/products/none", "/v1/views/none", "/v1/views/none/x", "/v1/nothing", "/", "/v1/baskets/x/history"]
    {
        whole.queries.get(path).await.problem(404, "not-found", "");
    }
    whole.queries.post("/v1/products/cd", json!({})).await.problem(405, "method-not-allowed", "");
}

#[tokio::test]
async fn the_catalogue_names_every_view_and_how_far_it_is() {
    let whole = Whole::new().await;
    let token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    whole.data("/v1/products/cd", &token).await;
    let views = whole.queries.get("/v1/views").await.json();
    let names: Vec<_> = views["views"].as_array().unwrap().iter().map(|view| view["name"].clone()).collect();
    assert_eq!(names, VIEWS.map(|view| view.name));
    assert_eq!(views["views"][3]["filters"], json!(["limit", "after", "order", "from", "to"]));
    assert_eq!(views["views"][0]["generation"], 1);
    eventually("no view lags", async || {
        let views = whole.queries.get("/v1/views").await.json();
        views["views"].as_array().unwrap().iter().all(|view| view["lag"] == 0).then_some(())
    })
    .await;
    assert!(views["views"][0]["applied"].as_str().unwrap().starts_with(token.split_once('.').unwrap().0));
}

#[tokio::test]
async fn the_catalogue_and_the_metrics_tell_for_how_long_each_server_lacks_what_the_log_has() {
    let mut shop = Shop::with_views(2).await;
    let postgres = Proxy::in_url(&mut shop.postgres_url).await;
    postgres.restore().await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    commands.post("/v1/products/cd/register", record()).await.accepted(&["product.registered.v1"]);
    let behind = async |server: &str| {
        let views = queries.get("/v1/views").await.json();
        views["views"][0][server]["behind_secs"].as_f64()
    };
    for server in ["redis", "postgres"] {
        eventually("the server is not behind", async || (behind(server).await == Some(0.0)).then_some(())).await;
    }
    // One more batch may be folded and shown in Redis before the projector notices that Postgres is gone. After that
    // neither Postgres nor Redis receives anything, while the log goes on.
    postgres.cut().await;
    let restock = async || commands.post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
    restock().await.accepted(&["product.restocked.v1"]);
    projector.wait_for_waiting("postgres").await;
    restock().await.accepted(&["product.restocked.v1"]);
    for server in ["redis", "postgres"] {
        eventually("the server has been behind for two seconds", async || {
            (behind(server).await > Some(2.0)).then_some(())
        })
        .await;
        let metrics = query_api.admin_client().get("/metrics").await.text;
        let name = format!("stampede_view_behind_seconds{{server=\"{server}\",view=\"product\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&*name)).unwrap_or_else(|| panic!("{metrics}"));
        assert!(value.parse::<f64>().unwrap() > 2.0, "{value}");
    }
    postgres.restore().await;
    for server in ["redis", "postgres"] {
        eventually("the server is not behind", async || (behind(server).await == Some(0.0)).then_some(())).await;
    }
}

#[tokio::test]
async fn when_a_projector_dies_another_one_goes_on_without_gap_or_double() {
    let mut whole = Whole::new().await;
    let _standby = whole.shop.projector().await;
    let mut token = String::new();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..6 {
        let lines: Vec<Value> = (0..200)
            .map(|n| {
                let customer = format!("c-{}", n % 7);
                *expected.entry(customer.clone()).or_default() += 1;
                let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 100 }]);
                batch_line(
                    "orders",
                    &format!("o-{round}-{n}"),
                    "place",
                    json!({ "customer": customer, "lines": lines }),
                )
            })
            .collect();
        let answers = whole.commands.batch(&lines).await;
        let tokens: Vec<_> = answers.iter().map(|answer| answer["token"].as_str().unwrap()).collect();
        token = tokens.join(",");
        if round == 2 {
            whole.projector.take().unwrap().crash().await;
        }
    }
    // The partitions of the crashed projector may be reassigned later than a query waits.
    whole.queries.is_stored(&token).await;
    for (customer, orders) in expected {
        let data = whole.data(&format!("/v1/customers/{customer}"), &token).await;
        assert_eq!((&data["orders"], &data["amount_cents"]), (&json!(orders), &json!(orders * 100)), "{customer}");
    }
}

#[tokio::test]
async fn an_emptied_redis_changes_no_answer() {
    let whole = Whole::new().await;
    let mut token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    whole.data("/v1/products/cd", &token).await;
    let mut connection = whole.shop.redis().await;
    for price in 1..=20 {
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(format!("{{{}:*", whole.shop.prefix)).query_async(&mut connection).await.unwrap();
        if !keys.is_empty() {
            redis::cmd("DEL").arg(keys).query_async::<i64>(&mut connection).await.unwrap();
        }
        token = whole.commands.post("/v1/products/cd/reprice", json!({ "price_cents": price })).await.token();
        assert_eq!(whole.data("/v1/products/cd", &token).await["price_cents"], price);
    }
    // Redis is in use again.
    eventually("answers come from Redis", async || {
        whole.queries.get_with("/v1/products/cd", &[("consistency-token", &token)]).await;
        let metrics = metrics(&whole.query_api).await;
        metrics.contains("origin=\"redis\",view=\"product\"").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_loses_positions_gets_them_again_without_new_events() {
    let whole = Whole::new().await;
    let token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    whole.data("/v1/products/cd", &token).await;
    let keys = schemas::cache::Keys::new(&whole.shop.prefix);
    let mut redis = whole.shop.redis().await;
    let position = (0..whole.shop.partitions).map(|partition| keys.shown("product", partition));
    let mut shown = None;
    for position in position {
        let value: String = redis::cmd("GET").arg(&position).query_async(&mut redis).await.unwrap();
        shown = Shown::parse(&value).filter(|shown| shown.offset >= 0).map(|shown| (position, shown)).or(shown);
    }
    let (position, shown) = shown.expect("Redis shows the product");

    let anew = Shown { making: Making { incarnation: 0, ..shown.making }, ..shown };
    let back = Shown { offset: shown.offset - 1, ..shown };
    let lost = ("DEL", vec![position.clone()]);
    let begun_by_another = ("SET", vec![position.clone(), Shown { offset: shown.offset - 1, ..anew }.to_string()]);
    let put_back = ("SET", vec![position.clone(), back.to_string()]);
    let of_another_build = ("SET", vec![position.clone(), "what is this".to_owned()]);
    for (command, args) in [lost, begun_by_another, put_back, of_another_build] {
        redis::cmd(command).arg(args).query_async::<redis::Value>(&mut redis).await.unwrap();
        eventually("Redis shows the position again", async || {
            let value: Option<String> = redis::cmd("GET").arg(&position).query_async(&mut redis).await.unwrap();
            let again = Shown::parse(&value?)?;
            (again.making.incarnation != 0 && again.offset >= shown.offset).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn however_many_ask_for_a_row_that_redis_lacks_all_get_it() {
    let whole = Whole::new().await;
    let token = whole.commands.post("/v1/products/cd/register", record()).await.token();
    whole.data("/v1/products/cd", &token).await;
    let mut connection = whole.shop.redis().await;
    let row: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{{{}:*:product:cd", whole.shop.prefix))
        .query_async(&mut connection)
        .await
        .unwrap();
    redis::cmd("DEL").arg(row).query_async::<i64>(&mut connection).await.unwrap();
    let readers = (0..200).map(|_| whole.get("/v1/products/cd", &token));
    let answers = futures_util::future::join_all(readers).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.token() == token));
}

async fn metrics(service: &Service) -> String {
    service.admin_client().get("/metrics").await.text
}

#[tokio::test]
async fn every_process_reports_its_liveness_readiness_and_metrics() {
    let whole = Whole::new().await;
    whole.commands.post("/v1/products/cd/register", record()).await;
    whole.queries.get("/v1/products/none").await;
    for (service, metric) in [
        (
            &whole.command_api,
            "stampede_commands_total{aggregate=\"product\",command=\"register\",outcome=\"accepted\"} 1",
        ),
        (whole.projector.as_ref().unwrap(), "stampede_projector_active 1"),
        (&whole.query_api, "stampede_queries_total{route=\"/v1/products/{id}\",status=\"404\"} 1"),
    ] {
        let admin = service.admin_client();
        for path in ["/livez", "/readyz", "/buildinfo"] {
            assert_eq!(admin.get(path).await.status, 200, "{path}");
        }
        let metrics = metrics(service).await;
        assert!(metrics.contains(metric), "{metric} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_sum_may_pass_what_64_bits_hold_and_stays_exact() {
    let whole = Whole::new().await;
    let placed = whole.record("o-0", "ann", "1997-01-01", 2, 1000).await;
    whole.get("/v1/customers/ann", &placed).await;
    // Simulates the sums of a great many orders. Two partitions may each have a part of one row; both are at the limit.
    for (table, key) in
        [("customer_parts", "ann"), ("revenue_parts", "1997-01-01"), ("revenue_by_minute_parts", "1997-01-01T12:00")]
    {
        let limit = i64::MAX;
        whole
            .shop
            .sql(&format!("UPDATE {table} SET units = {limit}, amount_cents = {limit} WHERE key = '{key}'"))
            .await;
    }
    let incarnations = async || {
        let metrics = whole.projector.as_ref().unwrap().admin_client().get("/metrics").await.text;
        metrics.lines().find(|line| line.starts_with("stampede_incarnations_total")).map(str::to_owned)
    };
    let before = incarnations().await;
    let mut tokens = Vec::new();
    for order in 1..=12 {
        tokens.push(whole.record(&format!("o-{order}"), "ann", "1997-01-01", 1, 100).await);
    }
    let token = tokens.join(",");
    // The maximum of 64 bits plus twelve orders.
    let sums = r#""units":9223372036854775819,"amount_cents":9223372036854777007"#;
    for path in ["/v1/customers/ann", "/v1/views/revenue/1997-01-01", "/v1/revenue", "/v1/revenue-by-minute"] {
        let answer = whole.get(path, &token).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert!(answer.text.contains(sums), "{path}: {answer:?}");
        assert_eq!(answer.header("stampede-parked"), None, "{path}");
    }
    assert_eq!(incarnations().await, before, "Redis fell out of step");
}
