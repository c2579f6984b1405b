//! Records that a view cannot fold are parked, in order, and all others are folded.

use projector::rebuild::{Options, rebuild};
use serde_json::{Value, json};

use crate::fixture::{Answer, Client, Service, Shop, batch_line, eventually};

struct Poisoned {
    shop: Shop,
    commands: Client,
    queries: Client,
    projector: Service,
    _services: [Service; 2],
}

impl Poisoned {
    /// Creates ten products and makes Postgres refuse rows of `p-3`.
    async fn new() -> Self {
        let shop = Shop::with_views(2).await;
        let command_api = shop.command_api().await;
        let projector = shop.projector().await;
        let services = [command_api, shop.query_api().await];
        let (commands, queries) = (services[0].client(), services[1].client());
        let poisoned = Self { shop, commands, queries, projector, _services: services };
        let product = json!({ "name": "A", "price_cents": 5, "stock": 100 });
        let token = poisoned.send("register", &product).await;
        // A list is answered by Postgres.
        assert_eq!(poisoned.get("/v1/views/product", &token).await.status, 200);
        poisoned.refuse("product_rows", "key <> 'p-3'").await;
        poisoned
    }

    async fn refuse(&self, table: &str, check: &str) {
        self.shop.sql(&format!("ALTER TABLE {table} ADD CONSTRAINT poison CHECK ({check}) NOT VALID")).await;
    }

    async fn accept(&self, table: &str) {
        self.shop.sql(&format!("ALTER TABLE {table} DROP CONSTRAINT poison")).await;
    }

    /// Sends one command to each product in one batch, so that the records are folded together.
    async fn send(&self, command: &str, data: &Value) -> String {
        let lines: Vec<_> = (0..10).map(|n| batch_line("products", &format!("p-{n}"), command, data.clone())).collect();
        let answers = self.commands.batch(&lines).await;
        answers.iter().map(|answer| answer["token"].as_str().unwrap()).collect::<Vec<_>>().join(",")
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        self.queries.get_with(path, &[("consistency-token", token), ("prefer", "wait=10")]).await
    }

    async fn stock(&self, key: &str, token: &str) -> Value {
        self.get(&format!("/v1/products/{key}"), token).await.json()["data"]["stock"].clone()
    }

    async fn list(&self) -> Vec<Value> {
        self.projector.admin_client().get("/parked").await.json()["parked"].as_array().unwrap().clone()
    }

    /// Waits until the row, which is shown before Postgres refuses it, is parked.
    async fn comes_to_be_parked(&self) {
        eventually("a record is parked", async || (!self.list().await.is_empty()).then_some(())).await;
    }

    async fn ask(&self, path: &str) -> Answer {
        self.projector.admin_client().post(path, json!({})).await
    }
}

#[tokio::test]
async fn a_row_that_postgres_refuses_is_parked_in_order_and_the_rest_goes_on() {
    let mut shop = Poisoned::new().await;
    shop.send("restock", &json!({ "quantity": 1 })).await;
    let token = shop.send("restock", &json!({ "quantity": 2 })).await;
    for n in [0, 1, 2, 4, 5, 6, 7, 8, 9] {
        assert_eq!(shop.stock(&format!("p-{n}"), &token).await, 103, "p-{n}");
    }
    shop.comes_to_be_parked().await;
    shop.queries.is_stored(&token).await;
    shop.get("/v1/products/p-3", &token).await.problem(503, "parked", "");
    let told = |answer: Answer| (answer.status.as_u16(), answer.header("stampede-parked").map(str::to_owned));
    let is_told = (200, Some("true".to_owned()));
    for (path, headers) in [
        ("/v1/products/p-3", vec![]),
        ("/v1/products/p-3", vec![("consistency-token", &*token), ("prefer", "handling=lenient")]),
        ("/v1/views/product", vec![]),
    ] {
        assert_eq!(told(shop.queries.get_with(path, &headers).await), is_told, "{path}");
    }
    assert_eq!(told(shop.get("/v1/products/p-4", &token).await), (200, None));
    let before = shop.queries.get("/v1/products/p-3").await;
    assert_eq!(before.json()["data"]["stock"], 100);
    assert_eq!(told(shop.get("/v1/products/p-3", &before.token()).await), is_told, "{before:?}");

    let listed = shop.list().await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    let [view, aggregate, records, first] =
        ["view", "aggregate", "records", "first_version"].map(|name| &listed[0][name]);
    assert_eq!((view, aggregate, records, first), (&json!("product"), &json!("product/p-3"), &json!(2), &json!(2)));
    assert!(listed[0]["reason"].as_str().unwrap().contains("poison"), "{listed:?}");
    let metrics = shop.projector.admin_client().get("/metrics").await.text;
    assert!(metrics.contains("stampede_parked{view=\"product\"} 1"), "{metrics}");

    let refused = shop.ask("/parked/product/product/p-3/retry").await;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert_eq!(shop.list().await.len(), 1, "the record is no longer parked");

    // Another projector reads the list of parked records.
    let other = shop.shop.projector().await;
    std::mem::replace(&mut shop.projector, other).stop().await;
    let token = shop.send("restock", &json!({ "quantity": 4 })).await;
    assert_eq!(shop.stock("p-2", &token).await, 107);
    shop.queries.is_stored(&token).await;
    assert_eq!(shop.list().await[0]["records"], 3);

    shop.accept("product_rows").await;
    let retried = shop.ask("/parked/product/product/p-3/retry").await;
    assert_eq!(retried.status, 204, "{retried:?}");
    assert_eq!(shop.stock("p-3", &token).await, 107, "Redis does not show the retried row");
    assert_eq!(shop.ask("/parked/product/product/p-3/retry").await.status, 404);
    let token = shop.send("restock", &json!({ "quantity": 8 })).await;
    assert_eq!(shop.stock("p-3", &token).await, 115, "later records were not folded onto the retried row");
    assert_eq!(told(shop.get("/v1/products/p-3", &token).await), (200, None), "the answer is still marked as parked");
    let config = projector::Config::from_env(&shop.shop.env([])).unwrap();
    assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, []);
}

#[tokio::test]
async fn what_is_discarded_leaves_a_record_and_later_events_are_folded() {
    let shop = Poisoned::new().await;
    let token = shop.send("restock", &json!({ "quantity": 1 })).await;
    assert_eq!(shop.stock("p-2", &token).await, 101);
    shop.comes_to_be_parked().await;
    shop.accept("product_rows").await;
    assert_eq!(shop.ask("/parked/product/product/p-3/discard").await.status, 204);
    let token = shop.send("restock", &json!({ "quantity": 2 })).await;
    assert_eq!((shop.stock("p-3", &token).await, shop.stock("p-2", &token).await), (json!(102), json!(103)));
    let record = "SELECT records FROM discarded WHERE view = 'product' AND aggregate = 'product/p-3' \
                  AND (first_version, last_version) = (2, 2) AND reason LIKE '%poison%'";
    assert_eq!(shop.shop.sql(record).await, Some(1));
    assert!(shop.list().await.is_empty());
}

#[tokio::test]
async fn of_a_sum_the_aggregate_to_blame_is_found_and_the_others_count() {
    let shop = Poisoned::new().await;
    shop.refuse("customer_parts", "amount_cents < 1000000").await;
    let place = |n: u64| {
        let amount = if n == 13 { 5_000_000 } else { 10 };
        let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": amount }]);
        batch_line("orders", &format!("o-{n}"), "place", json!({ "customer": "c", "lines": lines }))
    };
    let answers = shop.commands.batch(&(0..20).map(place).collect::<Vec<_>>()).await;
    let token_of = |n: usize| answers[n]["token"].as_str().unwrap();
    let token = (0..20).map(token_of).collect::<Vec<_>>().join(",");
    shop.comes_to_be_parked().await;
    // Only the writer of the parked record is refused.
    for path in ["/v1/customers/c", "/v1/views/customer"] {
        shop.get(path, token_of(13)).await.problem(503, "parked", "");
        let others = shop.get(path, token_of(12)).await;
        assert_eq!((others.status.as_u16(), others.header("stampede-parked")), (200, Some("true")), "{path}");
    }
    let headers = [("consistency-token", &*token), ("prefer", "wait=10, handling=lenient")];
    let customer = shop.queries.get_with("/v1/customers/c", &headers).await;
    assert_eq!(customer.json()["data"]["orders"], 19, "{customer:?}");
    let listed = shop.list().await;
    assert_eq!((listed.len(), &listed[0]["aggregate"]), (1, &json!("order/o-13")), "{listed:?}");
    assert_eq!(shop.get("/v1/orders/o-13", &token).await.status, 200, "another view refused the record");
    shop.accept("customer_parts").await;
    assert_eq!(shop.ask("/parked/customer/order/o-13/retry").await.status, 204);
    let data = shop.get("/v1/customers/c", &token).await.json()["data"].clone();
    assert_eq!((&data["orders"], &data["amount_cents"]), (&json!(20), &json!(5_000_190)));
}

#[tokio::test]
async fn a_rebuild_takes_what_was_parked() {
    let shop = Poisoned::new().await;
    let token = shop.send("restock", &json!({ "quantity": 1 })).await;
    assert_eq!(shop.stock("p-2", &token).await, 101);
    shop.comes_to_be_parked().await;
    let config = projector::Config::from_env(&shop.shop.env([])).unwrap();
    let wish = Options { views: vec!["product".to_owned()], accept: true, ..Options::default() };
    let error = rebuild(&config, &wish, |_| ()).await.unwrap_err();
    assert!(format!("{error:#}").contains("poison"), "{error:#}");
    shop.accept("product_rows").await;
    shop.accept("product_rows_next").await;
    assert_eq!(rebuild(&config, &wish, |_| ()).await.unwrap()[0].comparison.total(), 1);
    eventually("the record is folded", async || (shop.stock("p-3", &token).await == 101).then_some(())).await;
    assert!(shop.list().await.is_empty());
    let token = shop.send("restock", &json!({ "quantity": 1 })).await;
    assert_eq!(shop.stock("p-3", &token).await, 102);
}

#[tokio::test]
async fn what_is_not_parked_is_not_found() {
    let shop = Poisoned::new().await;
    for path in ["product/product/p-1/retry", "product/product/p-1/discard", "nonsense/product/p-1/retry"] {
        assert_eq!(shop.ask(&format!("/parked/{path}")).await.status, 404, "{path}");
    }
}
