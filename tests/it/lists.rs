//! Lists: every row once, in order, at a cost proportional to the page.

use schemas::views::VIEWS;
use serde_json::{Value, json};
use tokio_postgres::NoTls;

use crate::fixture::{Client, Service, Shop};

const TABLES: [(&str, &str); 7] = [
    ("product_rows", include_str!("lists/products.sql")),
    ("order_rows", include_str!("lists/orders.sql")),
    ("customer_parts", include_str!("lists/customers.sql")),
    ("revenue_parts", include_str!("lists/revenue.sql")),
    ("revenue_by_minute_parts", include_str!("lists/revenue_by_minute.sql")),
    ("sale_rows", include_str!("lists/sales.sql")),
    ("best_sellers_rows", include_str!("lists/best_sellers.sql")),
];

/// A shop whose tables the test fills itself.
struct Shelves {
    shop: Shop,
    queries: Client,
    _services: [Service; 3],
}

impl Shelves {
    async fn new() -> Self {
        let shop = Shop::with_views(3).await;
        let command_api = shop.command_api().await;
        let projector = shop.projector().await;
        let query_api = shop.query_api().await;
        Self { shop, queries: query_api.client(), _services: [command_api, projector, query_api] }
    }

    /// Inserts rows in an order unrelated to that of any list: prices and statuses repeat, times have fractions.
    async fn fill(&self, rows: u32) {
        for (_, sql) in TABLES {
            self.shop.sql(&statement(sql, rows)).await;
        }
    }

    async fn page(&self, path: &str) -> (Vec<Value>, Option<String>) {
        let answer = self.queries.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let mut page = answer.json();
        let Value::Array(rows) = page["rows"].take() else { panic!("{path}: no rows") };
        (rows, page["next"].as_str().map(str::to_owned))
    }

    /// Reads all pages and calls `meanwhile` with the rows so far between two of them.
    async fn walk(&self, path: &str, limit: usize, mut meanwhile: impl AsyncFnMut(&[Value])) -> Vec<Value> {
        let mut seen = Vec::new();
        let mut next = None;
        loop {
            let after = next.map_or(String::new(), |cursor: String| format!("&after={cursor}"));
            let (rows, cursor) = self.page(&format!("{path}&limit={limit}{after}")).await;
            assert!(rows.len() <= limit);
            seen.extend(rows);
            next = cursor;
            if next.is_none() {
                return seen;
            }
            meanwhile(&seen).await;
        }
    }
}

fn statement(sql: &str, rows: u32) -> String {
    sql.replace("{rows}", &rows.to_string())
}

/// Returns the sort key of a row: a field as a number, a text or a time, then the key.
fn place(row: &Value, order: &str) -> (i64, String) {
    let value = match (order, &row["data"][order]) {
        ("ordered_at" | "opens_at", Value::String(time)) => schemas::time::parse_rfc3339(time).unwrap().0.cast_signed(),
        (_, Value::Number(number)) => number.as_i64().unwrap(),
        (_, _) => 0,
    };
    (value, row["key"].as_str().unwrap().to_owned())
}

const LISTS: [(&str, &str, &str, &str); 18] = [
    ("product", "", "", "key"),
    ("product", "", "", "price_cents"),
    ("product", "discontinued", "false", "key"),
    ("product", "discontinued", "true", "price_cents"),
    ("order", "", "", "key"),
    ("order", "", "", "ordered_at"),
    ("order", "customer", "c-1", "ordered_at"),
    ("order", "status", "confirmed", "ordered_at"),
    ("customer", "", "", "key"),
    ("revenue", "", "", "key"),
    ("revenue_by_minute", "", "", "key"),
    ("sale", "", "", "key"),
    ("sale", "", "", "opens_at"),
    ("sale", "status", "open", "opens_at"),
    ("sale", "product", "cd-1", "opens_at"),
    ("best_sellers", "", "", "units"),
    ("best_sellers", "", "", "amount_cents"),
    ("low_stock", "", "", "available"),
];

#[tokio::test]
async fn walking_the_pages_of_a_list_gives_every_row_once_and_in_order() {
    let shelves = Shelves::new().await;
    shelves.fill(300).await;
    for (view, filter, value, order) in LISTS {
        // The list of products low in stock has only one order.
        let any = if view == "low_stock" { order } else { "key" };
        let all = shelves.walk(&format!("/v1/views/{view}?order={any}"), 1000, async |_| {}).await;
        let matches = |row: &&Value| filter.is_empty() || row["data"][filter].to_string().trim_matches('"') == value;
        let mut expected: Vec<_> = all.iter().filter(matches).map(|row| place(row, order)).collect();
        assert!(expected.len() > 20, "{view} {filter}={value} has few rows: {}", expected.len());
        expected.sort();
        let filter = if filter.is_empty() { String::new() } else { format!("&{filter}={value}") };
        for limit in [1, 7, expected.len(), 1000] {
            for (minus, backwards) in [("", false), ("-", true)] {
                let path = format!("/v1/views/{view}?order={minus}{order}{filter}");
                let walked = shelves.walk(&path, limit, async |_| {}).await;
                let mut walked: Vec<_> = walked.iter().map(|row| place(row, order)).collect();
                if backwards {
                    walked.reverse();
                }
                assert!(walked == expected, "{path} by {limit}");
            }
        }
    }
}

#[tokio::test]
async fn rows_that_come_behind_a_reader_neither_repeat_nor_hide_another_row() {
    let shelves = Shelves::new().await;
    shelves.fill(200).await;
    for (minus, order) in [("", "key"), ("-", "key"), ("", "price_cents"), ("-", "price_cents")] {
        let path = format!("/v1/views/product?order={minus}{order}");
        let before = shelves.walk(&path, 1000, async |_| {}).await;
        let walked = shelves.walk(&path, 7, async |seen| {
            // Inserts a row right before the point where the next page begins.
            let (last, turn) = (seen.last().unwrap(), seen.len());
            let key = last["key"].as_str().unwrap();
            let by = if minus.is_empty() { -1 } else { 1 };
            let price = last["data"]["price_cents"].as_i64().unwrap() + by;
            // A prefix of a key sorts before it, a longer key behind it.
            let key = match (order, minus) {
                ("key", "") => key[..key.len() - 1].to_owned(),
                _ => format!("{key}-{turn}"),
            };
            let data = json!({ "name": "", "price_cents": price, "stock": 0, "available": 0, "reserved": 0,
                               "sold": 0, "discontinued": false });
            let insert = "INSERT INTO product_rows (key, version, data, price_cents, discontinued, available) VALUES";
            let row = format!("('{key}', 1, '{data}', {price}, false, 0)");
            shelves.shop.sql(&format!("{insert} {row} ON CONFLICT DO NOTHING")).await;
        });
        assert!(walked.await == before, "{path}");
    }
}

#[tokio::test]
async fn a_page_walks_an_index_and_stops_at_its_limit() {
    let shop = Shop::with_views(3).await;
    for (table, sql) in TABLES {
        shop.sql(&statement(sql, 5_000)).await;
        shop.sql(&format!("ANALYZE {table}")).await;
    }
    let mut config: tokio_postgres::Config = shop.postgres_url.parse().unwrap();
    config.options(format!("{} -c plan_cache_mode=force_generic_plan", query_api::postgres::PLANNER));
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let statements = query_api::lists::statements();
    assert!(statements.len() > 50);
    for (name, sql) in statements {
        let parameters = (1..).take_while(|number| sql.contains(&format!("${number}"))).count();
        let types = ["text", "bigint"].into_iter().chain(std::iter::repeat("text")).take(parameters);
        let types = types.collect::<Vec<_>>().join(", ");
        let nothing = vec!["NULL"; parameters].join(", ");
        client.batch_execute(&format!("PREPARE page ({types}) AS {sql}")).await.unwrap();
        let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE page ({nothing})");
        let plan: Value = client.query_one(&explain, &[]).await.unwrap().get(0);
        client.batch_execute("DEALLOCATE page").await.unwrap();
        assert_walks_an_index(&plan[0]["Plan"], false, &name);
    }
}

/// Asserts that below a limit rows come only from indexes in their order, and that none is read and discarded.
fn assert_walks_an_index(node: &Value, limited: bool, name: &str) {
    let kind = node["Node Type"].as_str().unwrap();
    assert_ne!(kind, "Seq Scan", "{name}: {node:#}");
    if limited {
        assert!(
            ["Unique", "Result", "Index Scan", "Index Only Scan", "Aggregate", "Subquery Scan"].contains(&kind),
            "{name}: {node:#}"
        );
        // The filter may only be evaluated on a row that was found by its key.
        let is_known = node["Filter"] == "(low_available IS NOT NULL)" && node["Index Cond"].is_string();
        assert!(node["Filter"].is_null() || is_known, "{name}: {node:#}");
        assert_ne!(node["Strategy"], "Hashed", "{name}: {node:#}");
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        assert_walks_an_index(child, limited || kind == "Limit", name);
    }
}

#[tokio::test]
async fn the_orders_of_a_customer_come_newest_first() {
    let shelves = Shelves::new().await;
    let commands = shelves._services[0].client();
    let mut tokens = Vec::new();
    for (order, customer, day) in
        [("o-1", "ann", "02"), ("o-2", "bob", "03"), ("o-3", "ann", "04"), ("o-4", "ann", "01"), ("o-5", "ann", "02")]
    {
        let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 100 }]);
        let data = json!({ "customer": customer, "lines": lines, "ordered_at": format!("1997-01-{day}T12:00:00Z") });
        let recorded = commands.post(&format!("/v1/orders/{order}/record"), data).await;
        tokens.push(recorded.accepted(&["order.recorded.v1"]).token());
    }
    let fresh = [("consistency-token", &*tokens.join(",")), ("prefer", "wait=10")];
    let first = shelves.queries.get_with("/v1/customers/ann/orders?limit=3", &fresh).await.json();
    assert_eq!(keys(&first), ["o-3", "o-5", "o-1"]);
    let after = first["next"].as_str().unwrap();
    let rest = shelves.queries.get(&format!("/v1/customers/ann/orders?after={after}")).await.json();
    assert_eq!((keys(&rest), &rest["next"]), (vec!["o-4"], &Value::Null));
    let oldest = shelves.queries.get("/v1/customers/ann/orders?order=ordered_at").await.json();
    assert_eq!(keys(&oldest), ["o-4", "o-1", "o-5", "o-3"]);
    assert_eq!(keys(&shelves.queries.get("/v1/customers/none/orders").await.json()), [""; 0]);
    let other = format!("/v1/customers/bob/orders?after={after}");
    shelves.queries.get(&other).await.problem(400, "invalid-request", "after");
}

fn keys(page: &Value) -> Vec<&str> {
    page["rows"].as_array().unwrap().iter().map(|row| row["key"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_row_of_every_view_answers_the_token_that_its_list_answered() {
    let shelves = Shelves::new().await;
    let commands = shelves._services[0].client();
    let mut tokens = Vec::new();
    for (path, data) in [
        ("/v1/products/cd/register", json!({ "name": "A", "price_cents": 5, "stock": 5 })),
        (
            "/v1/sales/drop/schedule",
            json!({
                "product": "cd", "units": 3, "limit_per_customer": 2, "price_cents": 100,
                "opens_at": "2100-01-01T00:00:00Z", "closes_at": "2100-01-02T00:00:00Z",
            }),
        ),
        (
            "/v1/orders/o-1/record",
            json!({
                "customer": "ann", "ordered_at": "1997-01-01T12:00:00Z",
                "lines": [{ "product": "cd", "quantity": 1, "amount_cents": 100 }],
            }),
        ),
    ] {
        tokens.push(commands.post(path, data).await.token());
    }
    let fresh = [("consistency-token", &*tokens.join(",")), ("prefer", "wait=10")];
    for view in &VIEWS {
        let page = shelves.queries.get_with(&format!("/v1/views/{}", view.name), &fresh).await.json();
        let listed = &page["rows"][0];
        let Some(key) = listed["key"].as_str() else {
            assert_eq!(view.name, "best_sellers", "the list has no row: {page}");
            continue;
        };
        let row = shelves.queries.get_with(&format!("/v1/views/{}/{key}", view.name), &fresh).await;
        assert_eq!((row.status.as_u16(), &row.json()["data"]), (200, &listed["data"]), "{} {row:?}", view.name);
        assert!(row.header("consistency-token").is_some(), "{}: {row:?}", view.name);
    }
}

#[tokio::test]
async fn the_range_of_a_list_holds_on_every_page_of_it_both_ways() {
    let shelves = Shelves::new().await;
    shelves.fill(300).await;
    let path = "/v1/revenue?from=1997-02-01&to=1997-03-31";
    let forwards = shelves.walk(path, 7, async |_| {}).await;
    assert_eq!(forwards.len(), 59);
    assert_eq!((&forwards[0]["key"], &forwards[58]["key"]), (&json!("1997-02-01"), &json!("1997-03-31")));
    let mut backwards = shelves.walk(&format!("{path}&order=-key"), 7, async |_| {}).await;
    backwards.reverse();
    assert!(forwards == backwards);
}
