//! A view is made anew beside the live one and put in its place, while everything goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use projector::rebuild::{Report, Wish, rebuild};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::fixture::{Answer, Client, Service, Shop, batch_line, eventually};

struct Shown {
    shop: Shop,
    commands: Client,
    queries: Client,
    projector: Option<Service>,
    _services: [Service; 2],
}

impl Shown {
    /// With twenty products, on which orders were placed, and shown by every view.
    async fn new() -> Self {
        let shop = Shop::with_views(3).await;
        let command_api = shop.command_api().await;
        let projector = Some(shop.projector().await);
        let services = [command_api, shop.query_api().await];
        let (commands, queries) = (services[0].client(), services[1].client());
        let shown = Self { shop, commands, queries, projector, _services: services };
        let product = json!({ "name": "A", "price_cents": 5, "stock": 1_000_000 });
        let register = |n| batch_line("products", &format!("p-{n}"), "register", product.clone());
        shown.send((0..20).map(register).collect()).await;
        let place = |n| {
            let lines = json!([{ "product": "p-1", "quantity": 1, "amount_cents": n }]);
            let data = json!({ "customer": format!("c-{}", n % 7), "lines": lines });
            batch_line("orders", &format!("o-{n}"), "place", data)
        };
        let token = shown.send((0..200).map(place).collect()).await;
        for path in ["/v1/products/p-1", "/v1/customers/c-1", "/v1/views/order", "/v1/revenue"] {
            assert_eq!(shown.get(path, &token).await.status, 200);
        }
        shown
    }

    async fn send(&self, lines: Vec<serde_json::Value>) -> String {
        let answers = self.commands.batch(&lines).await;
        answers.iter().map(|answer| answer["token"].as_str().unwrap()).collect::<Vec<_>>().join(",")
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        self.queries.get_with(path, &[("consistency-token", token), ("prefer", "wait=10")]).await
    }

    async fn rebuild(&self, view: &str, how: &str) -> anyhow::Result<(Report, Vec<String>)> {
        let wish = Wish { view: view.to_owned(), rollback: how == "--rollback", accept: how == "--accept" };
        let config = projector::Config::from_env(&self.shop.env([])).unwrap();
        let told = std::sync::Mutex::new(Vec::new());
        let report = rebuild(&config, &wish, |line| told.lock().unwrap().push(line)).await?;
        Ok((report, told.into_inner().unwrap()))
    }

    /// Reserves of all products, again and again, and asks with each answer's token. Gives how often.
    fn keep_busy(&self, until: &Arc<AtomicBool>) -> JoinHandle<u64> {
        let (commands, queries, until) = (self.commands.clone(), self.queries.clone(), until.clone());
        tokio::spawn(async move {
            let mut round = 0;
            while !until.load(Ordering::Relaxed) {
                round += 1;
                for n in 0..20 {
                    let data = json!({ "order": format!("r-{round}"), "quantity": 1 });
                    let reserved = commands.post(&format!("/v1/products/p-{n}/reserve"), data).await;
                    let token = reserved.accepted(&["product.reserved.v2"]).token();
                    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
                    let row = queries.get_with(&format!("/v1/products/p-{n}"), &fresh).await;
                    assert_eq!((row.status.as_u16(), &row.json()["data"]["reserved"]), (200, &json!(round)), "{row:?}");
                }
            }
            round
        })
    }

    async fn audited(&self) {
        let config = projector::Config::from_env(&self.shop.env([])).unwrap();
        let report = projector::audit::audit(&config, None).await.unwrap();
        assert_eq!(report.differences, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_under_writes_changes_no_row_and_hides_nothing_from_a_token() {
    let shown = Shown::new().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let busy = shown.keep_busy(&is_over);
    for (view, path, generation) in
        [("product", "/v1/products/p-1", 2), ("customer", "/v1/customers/c-1", 2), ("product", "/v1/products/p-1", 3)]
    {
        let before = shown.queries.get(path).await;
        let (report, told) = shown.rebuild(view, "").await.unwrap();
        assert_eq!(report.comparison.differences, [], "{view}");
        assert!(report.comparison.partitions.iter().map(|partition| partition.rows).sum::<u64>() >= 7);
        assert_eq!(report.generation, Some(generation), "{told:?}");
        assert!(report.copied > 0, "{view}: what Redis had is hot: {told:?}");
        let tag = format!("-{generation}\"");
        let after = eventually("the new generation is served", async || {
            let answer = shown.queries.get(path).await;
            answer.header("etag").unwrap().ends_with(&tag).then_some(answer)
        })
        .await;
        let catalogue = shown.queries.get("/v1/views").await.json();
        let entries = catalogue["views"].as_array().unwrap();
        let told = &entries.iter().find(|entry| entry["name"] == view).unwrap()["generation"];
        assert_eq!(told, generation, "the catalogue is not older than a row that was served");
        let known = before.header("etag").unwrap();
        assert_eq!(shown.queries.get_with(path, &[("if-none-match", known)]).await.status, 200, "another making");
        let tag = after.header("etag").unwrap().to_owned();
        if view == "customer" {
            assert_eq!(shown.queries.get_with(path, &[("if-none-match", &tag)]).await.status, 304);
        }
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(busy.await.unwrap() > 0);
    shown.audited().await;
    let views = shown.queries.get("/v1/views").await.json();
    let generations: Vec<_> = views["views"].as_array().unwrap().iter().map(|view| &view["generation"]).collect();
    assert_eq!(generations[..4], [3, 1, 2, 1]);
    // It is made of products.
    assert_eq!(generations[7], 3);
}

#[tokio::test]
async fn wrong_rows_are_named_and_stay_until_the_rebuild_is_accepted_and_come_back_with_a_rollback() {
    let shown = Shown::new().await;
    let wrong = "SET data = replace(data::text, '\"A\"', '\"B\"')::json WHERE key IN ('p-3', 'p-4')";
    shown.shop.sql(&format!("UPDATE product_rows {wrong}")).await;
    shown.shop.sql("DELETE FROM product_rows WHERE key = 'p-5'").await;
    let (report, _) = shown.rebuild("product", "").await.unwrap();
    assert_eq!((report.generation, report.comparison.total()), (None, 3));
    let keys: Vec<_> = report.comparison.differences.iter().map(|difference| difference.key.as_str()).collect();
    assert_eq!(keys, ["p-3", "p-4", "p-5"]);

    let (report, told) = shown.rebuild("product", "--accept").await.unwrap();
    assert_eq!(report.generation, Some(2));
    assert!(told.iter().any(|line| line.contains("did not come to its end")), "it goes on from there: {told:?}");
    let name = async |key: &str| shown.queries.get(&format!("/v1/products/{key}")).await.json()["data"]["name"].clone();
    eventually("the right rows are served", async || (name("p-3").await == "A").then_some(())).await;
    assert_eq!(name("p-5").await, "A");
    shown.audited().await;

    let data = json!({ "order": "o", "quantity": 3 });
    let token = shown.commands.post("/v1/products/p-3/reserve", data).await.token();
    assert_eq!(shown.get("/v1/products/p-3", &token).await.status, 200);
    let (report, _) = shown.rebuild("product", "--rollback").await.unwrap();
    assert_eq!(report.generation, Some(3));
    let row = eventually("the rows from before are served", async || {
        let row = shown.queries.get("/v1/products/p-3").await.json();
        (row["data"]["name"] == "B").then_some(row)
    });
    assert_eq!(row.await["data"]["reserved"], 3, "with what came since");
    let (report, _) = shown.rebuild("product", "--rollback").await.unwrap();
    assert_eq!(report.generation, Some(4));
    eventually("the right rows are back", async || (name("p-3").await == "A").then_some(())).await;
    shown.audited().await;
}

#[tokio::test]
async fn rows_of_another_fold_are_not_folded_further_until_they_are_rebuilt() {
    let mut shown = Shown::new().await;
    shown.projector.take().unwrap().stop().await;
    shown.shop.sql("UPDATE checkpoints SET fold = 0 WHERE view = 'order'").await;
    let projector = shown.shop.start_projector();
    eventually("it says what to do", async || {
        let waits = projector.admin_client().get("/readyz").await.text;
        waits.contains("rebuild order with this build").then_some(())
    })
    .await;
    let (report, _) = shown.rebuild("order", "").await.unwrap();
    assert_eq!(report.generation, Some(2));
    projector.wait_ready().await;
    let token = shown.commands.post("/v1/orders/o-1/cancel", json!({})).await.token();
    let order = shown.get("/v1/orders/o-1", &token).await;
    assert_eq!((&order.json()["data"]["status"], order.header("etag")), (&json!("cancelled"), Some("\"2-2\"")));
}

#[tokio::test]
async fn what_cannot_be_rebuilt_is_refused_with_a_reason() {
    let shown = Shown::new().await;
    for (view, how, reason) in
        [("journal", "", "there are product, order"), ("product", "--rollback", "nothing is kept")]
    {
        let error = shown.rebuild(view, how).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error:#}");
    }
    shown.shop.sql("CREATE TABLE order_rows_next (key int)").await;
    assert_eq!(
        shown.rebuild("order", "").await.unwrap().0.generation,
        Some(2),
        "what is left of nothing is no obstacle"
    );
}
