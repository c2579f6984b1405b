//! Rebuilds of a view beside the live one, and the switch, while everything keeps running.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use projector::rebuild::{Options, Report, rebuild};
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
    /// Creates a shop with twenty products and orders for them, shown by every view.
    async fn new() -> Self {
        let shop = Shop::with_views(3).await;
        let command_api = shop.command_api().await;
        let projector = Some(shop.projector().await);
        let services = [command_api, shop.query_api().await];
        let (commands, queries) = (services[0].client(), services[1].client());
        let shown = Self { shop, commands, queries, projector, _services: services };
        let product = json!({ "name": "A", "price_cents": 5, "stock": 1_000_000 });
        let register = |n| batch_line("products", &format!("p-{n}"), "register", product.clone());
        let registered = shown.send((0..20).map(register).collect()).await;
        assert_eq!(shown.get("/v1/views/product", &registered).await.status, 200);
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
        let (mut reports, told) = self.rebuild_all(&[view], how).await?;
        Ok((reports.remove(0), told))
    }

    async fn rebuild_all(&self, views: &[&str], how: &str) -> anyhow::Result<(Vec<Report>, Vec<String>)> {
        let wish = Options::from_args(views.iter().copied().chain(how.split_whitespace()).map(str::to_owned))?;
        let config = projector::Config::from_env(&self.shop.env([])).unwrap();
        let told = std::sync::Mutex::new(Vec::new());
        let reports = rebuild(&config, &wish, |line| told.lock().unwrap().push(line)).await?;
        Ok((reports, told.into_inner().unwrap()))
    }

    /// Reserves units of all products repeatedly, queries each with the answer's token, and returns the number of
    /// rounds.
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
    for (view, path, generation, limits) in [
        ("product", "/v1/products/p-1", 2, "--threads 1 --share 10"),
        ("customer", "/v1/customers/c-1", 2, ""),
        ("product", "/v1/products/p-1", 3, "--fast"),
    ] {
        let before = shown.queries.get(path).await;
        let (report, told) = shown.rebuild(view, limits).await.unwrap();
        assert_eq!(report.comparison.differences, [], "{view}");
        assert!(report.comparison.partitions.iter().map(|partition| partition.rows).sum::<u64>() >= 7);
        assert_eq!(report.generation, Some(generation), "{told:?}");
        assert_eq!(report.copied > 0, view == "product", "rows should be copied in Redis, except for sums: {told:?}");
        let tag = format!("-{generation}\"");
        let after = eventually("the new generation is served", async || {
            let answer = shown.queries.get(path).await;
            answer.header("etag").unwrap().ends_with(&tag).then_some(answer)
        })
        .await;
        let catalogue = shown.queries.get("/v1/views").await.json();
        let entries = catalogue["views"].as_array().unwrap();
        let told = &entries.iter().find(|entry| entry["name"] == view).unwrap()["generation"];
        assert_eq!(told, generation, "the catalogue is behind a row that was served");
        let known = before.header("etag").unwrap();
        assert_eq!(
            shown.queries.get_with(path, &[("if-none-match", known)]).await.status,
            200,
            "the ETag of another generation matched"
        );
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
    // This view is computed from products.
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
    assert!(told.iter().any(|line| line.contains("unfinished rebuild")), "the rebuild did not resume: {told:?}");
    let name = async |key: &str| shown.queries.get(&format!("/v1/products/{key}")).await.json()["data"]["name"].clone();
    eventually("the right rows are served", async || (name("p-3").await == "A").then_some(())).await;
    assert_eq!(name("p-5").await, "A");
    shown.audited().await;

    let data = json!({ "order": "o", "quantity": 3 });
    let token = shown.commands.post("/v1/products/p-3/reserve", data).await.token();
    // A rollback restores the rows of Postgres, then folds later records onto them.
    shown.queries.is_stored(&token).await;
    let (report, _) = shown.rebuild("product", "--rollback").await.unwrap();
    assert_eq!(report.generation, Some(3));
    let row = eventually("the rows from before are served", async || {
        let row = shown.queries.get("/v1/products/p-3").await.json();
        (row["data"]["name"] == "B").then_some(row)
    });
    assert_eq!(row.await["data"]["reserved"], 3, "later records were not folded");
    let (report, _) = shown.rebuild("product", "--rollback").await.unwrap();
    assert_eq!(report.generation, Some(4));
    eventually("the right rows are back", async || (name("p-3").await == "A").then_some(())).await;
    shown.audited().await;
}

#[tokio::test]
async fn views_of_another_fold_wait_alone_and_go_on_after_their_rebuild() {
    let mut shown = Shown::new().await;
    shown.projector.take().unwrap().stop().await;
    shown.shop.sql("UPDATE checkpoints SET fold = 0 WHERE view IN ('order', 'revenue')").await;
    let projector = shown.shop.projector().await;
    let metric = async |name: &str| {
        let text = projector.admin_client().get("/metrics").await.text;
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next().map(str::to_owned))
    };
    eventually("the metrics show which views wait for a rebuild", async || {
        let waits = [
            metric("stampede_view_waits_for_rebuild{view=\"order\"").await,
            metric("stampede_view_waits_for_rebuild{view=\"product\"").await,
        ];
        (waits == [Some("1".to_owned()), Some("0".to_owned())]).then_some(())
    })
    .await;
    let incarnations = metric("stampede_incarnations_total").await;

    let cancelled = shown.commands.post("/v1/orders/o-1/cancel", json!({})).await.token();
    let customer = shown.get("/v1/customers/c-1", &cancelled).await;
    assert_eq!(
        (customer.status.as_u16(), &customer.json()["data"]["orders"]),
        (200, &json!(28)),
        "another view stopped"
    );
    let data = json!({ "order": "r", "quantity": 3 });
    let reserved = shown.commands.post("/v1/products/p-7/reserve", data).await.token();
    assert_eq!(shown.get("/v1/products/p-7", &reserved).await.json()["data"]["reserved"], 3);
    let soon = [("consistency-token", cancelled.as_str()), ("prefer", "wait=0.1")];
    assert_eq!(
        shown.queries.get_with("/v1/orders/o-1", &soon).await.status,
        503,
        "a view that waits for its rebuild was folded"
    );
    let before = shown.queries.get("/v1/orders/o-1").await;
    assert_eq!((&before.json()["data"]["status"], before.header("etag")), (&json!("placed"), Some("\"1\"")));

    let (reports, _) = shown.rebuild_all(&["order", "revenue"], "").await.unwrap();
    let live: Vec<_> = reports.iter().map(|report| (report.view, report.generation)).collect();
    assert_eq!(live, [("order", Some(2)), ("revenue", Some(2))]);
    let order = shown.get("/v1/orders/o-1", &cancelled).await;
    assert_eq!((&order.json()["data"]["status"], order.header("etag")), (&json!("cancelled"), Some("\"2-2\"")));
    let cancelled = shown.commands.post("/v1/orders/o-2/cancel", json!({})).await.token();
    assert_eq!(shown.get("/v1/orders/o-2", &cancelled).await.json()["data"]["status"], "cancelled");
    assert_eq!(shown.get("/v1/revenue", &cancelled).await.json()["rows"][0]["data"]["orders"], 198);
    assert_eq!(metric("stampede_incarnations_total").await, incarnations, "other views lost their rows in Redis");
    shown.audited().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_rebuilt_in_one_pass_and_each_is_switched_or_stays_by_itself() {
    let shown = Shown::new().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let busy = shown.keep_busy(&is_over);
    let (reports, told) = shown.rebuild_all(&["product", "customer", "order", "customer"], "").await.unwrap();
    let live: Vec<_> = reports.iter().map(|report| (report.view, report.generation)).collect();
    assert_eq!(live, [("product", Some(2)), ("customer", Some(2)), ("order", Some(2))], "{told:?}");
    assert_eq!(told.iter().filter(|line| line.starts_with("folded")).count(), 1, "{told:?}");
    is_over.store(true, Ordering::Relaxed);
    assert!(busy.await.unwrap() > 0);
    shown.audited().await;

    shown.shop.sql("UPDATE product_rows SET data = replace(data::text, '\"A\"', '\"B\"')::json").await;
    let (reports, _) = shown.rebuild_all(&["product", "customer"], "").await.unwrap();
    let live: Vec<_> = reports.iter().map(|report| (report.comparison.total(), report.generation)).collect();
    assert_eq!(live, [(20, None), (0, Some(3))]);
    let error = shown.rebuild_all(&["customer", "sale"], "--rollback").await.unwrap_err();
    assert!(error.to_string().contains("no rows of sale are kept"), "{error:#}");
    let (reports, _) = shown.rebuild_all(&["customer", "product"], "--rollback").await.unwrap();
    assert_eq!(reports.iter().map(|report| report.generation).collect::<Vec<_>>(), [Some(4), Some(3)]);
    shown.audited().await;
}

#[tokio::test]
async fn what_others_were_granted_stays_and_rows_from_before_a_migration_do_not_come_back() {
    let shown = Shown::new().await;
    let granted = async || {
        shown.shop.sql("SELECT has_table_privilege('pg_monitor', 'customer_parts', 'SELECT')::int::bigint").await
    };
    assert_eq!(granted().await, Some(0));
    shown.shop.sql("GRANT SELECT ON customer_parts TO pg_monitor").await;
    shown.rebuild("customer", "").await.unwrap();
    assert_eq!(granted().await, Some(1));

    // Simulates a migration.
    shown.shop.sql("ALTER TABLE customer_parts ADD COLUMN more int").await;
    let error = shown.rebuild("customer", "--rollback").await.unwrap_err();
    assert!(error.to_string().contains("a migration changed the columns of customer"), "{error:#}");
    assert_eq!(shown.rebuild("customer", "").await.unwrap().0.generation, Some(3));
    assert_eq!(shown.shop.sql("SELECT count(more) FROM customer_parts").await, Some(0), "the new column has values");
}

#[tokio::test]
async fn what_cannot_be_rebuilt_is_refused_with_a_reason() {
    let shown = Shown::new().await;
    for (view, how, reason) in
        [("journal", "", "known views: product, order"), ("product", "--rollback", "no rows of product are kept")]
    {
        let error = shown.rebuild_all(&["order", view], how).await.unwrap_err();
        assert!(error.to_string().contains("known views: product") || how == "--rollback", "{error:#}");
        let error = shown.rebuild(view, how).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error:#}");
    }
    shown.shop.sql("CREATE TABLE order_rows_next (key int)").await;
    assert_eq!(
        shown.rebuild("order", "").await.unwrap().0.generation,
        Some(2),
        "a left-over table prevented the rebuild"
    );
}
