//! An audit reports no difference for correct views and names every wrong row.

use projector::audit::{Difference, audit};
use redis::AsyncTypedCommands as _;
use schemas::aggregate::AggregateType;
use schemas::feeds::FeedId;
use serde_json::json;

use crate::fixture::{Client, Service, Shop, batch_line};

struct Audited {
    shop: Shop,
    commands: Client,
    queries: Client,
    _services: [Service; 3],
}

impl Audited {
    /// Creates a shop with something in every view, shown by every view.
    async fn new() -> Self {
        let shop = Shop::with_views(3).await;
        let services = [shop.command_api().await, shop.projector().await, shop.query_api().await];
        let (commands, queries) = (services[0].client(), services[2].client());
        let audited = Self { shop, commands, queries, _services: services };
        let mut token = audited.order(0).await;
        let product = json!({ "name": "A", "price_cents": 5, "stock": 100 });
        for command in 0..20 {
            let path = format!("/v1/products/p-{command}/register");
            token = format!("{token},{}", audited.commands.post(&path, product.clone()).await.token());
        }
        let cancelled = audited.commands.post("/v1/orders/o-0-7/cancel", json!({ "reason": "too late" })).await;
        token = format!("{token},{}", cancelled.accepted(&["order.cancelled.v2"]).token());
        let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
        for path in ["/v1/views/product", "/v1/views/order", "/v1/views/customer", "/v1/views/revenue"] {
            assert_eq!(audited.queries.get_with(path, &fresh).await.status, 200);
        }
        audited
    }

    /// Records a hundred orders and returns their tokens.
    async fn order(&self, round: u32) -> String {
        let lines: Vec<_> = (0..100)
            .map(|n| {
                let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": n }]);
                let at = format!("1997-01-{:02}T12:00:00.{}Z", n % 28 + 1, n % 5);
                let data = json!({ "customer": format!("c-{}", n % 7), "lines": lines, "ordered_at": at });
                batch_line("orders", &format!("o-{round}-{n}"), "record", data)
            })
            .collect();
        let answers = self.commands.batch(&lines).await;
        answers.iter().map(|answer| answer["token"].as_str().unwrap()).collect::<Vec<_>>().join(",")
    }

    async fn differences(&self, most: Option<usize>) -> Vec<Difference> {
        let config = projector::Config::from_env(&self.shop.env([])).unwrap();
        audit(&config, most).await.unwrap().differences
    }

    /// Returns the only difference, as `view key, place`.
    async fn difference(&self, most: Option<usize>) -> String {
        let differences = self.differences(most).await;
        assert_eq!(differences.len(), 1, "{differences:#?}");
        let Difference { view, key, place, .. } = &differences[0];
        format!("{view} {key}, {place}")
    }
}

#[tokio::test]
async fn an_audit_finds_nothing_where_the_views_are_right_though_commands_go_on() {
    let audited = Audited::new().await;
    let config = projector::Config::from_env(&audited.shop.env([])).unwrap();
    for most in [None, Some(1000), Some(5)] {
        let orders = async {
            for round in 0..5 {
                audited.order(round * 10 + 1 + u32::try_from(most.unwrap_or(0)).unwrap()).await;
            }
        };
        let (report, ()) = tokio::join!(audit(&config, most), orders);
        let report = report.unwrap();
        assert_eq!(report.differences, []);
        assert_eq!(report.checkpoints, 3 * FeedId::COUNT);
        assert!(report.commits > 120 && report.rows >= 20, "{report:?}");
    }
    let report = audit(&config, None).await.unwrap();
    // Each aggregate has a row in one view. The audit compares no other rows in Redis.
    let aggregates = 20 + (report.commits as usize - 20 - 1);
    assert_eq!((&report.differences[..], report.cached_rows), (&[][..], aggregates));
}

#[tokio::test]
async fn an_audit_names_the_row_that_was_changed_in_postgres() {
    let audited = Audited::new().await;
    let set = "UPDATE product_rows SET data = replace(data::text, 'cents\":5', 'cents\":6')::json WHERE key = 'p-3'";
    audited.shop.sql(set).await;
    for most in [None, Some(1000)] {
        assert_eq!(audited.difference(most).await, "product p-3, Postgres");
    }
    audited.shop.sql(&set.replace("5'", "7'").replace("6'", "5'").replace("7'", "6'")).await;
    assert_eq!(audited.differences(None).await, []);

    audited.shop.sql("DELETE FROM order_rows WHERE key = 'o-0-3'").await;
    assert_eq!(audited.difference(Some(1000)).await, "order o-0-3, Postgres");
    audited.shop.sql("UPDATE order_rows SET key = 'o-0-3', version = 1 WHERE key = 'o-0-4'").await;
    assert_eq!(audited.differences(None).await.len(), 2);
}

#[tokio::test]
async fn an_audit_names_a_sum_that_is_wrong_and_a_row_too_many() {
    let audited = Audited::new().await;
    audited.shop.sql("UPDATE customer_parts SET units = units + 1 WHERE key = 'c-2' AND partition = 1").await;
    assert_eq!(audited.difference(None).await, "customer c-2, Postgres");
    audited.shop.sql("UPDATE customer_parts SET units = units - 1 WHERE key = 'c-2' AND partition = 1").await;
    audited.shop.sql("INSERT INTO revenue_parts VALUES ('1999-01-01', 0, 1, 1, 1, 1)").await;
    assert_eq!(audited.difference(None).await, "revenue 1999-01-01, Postgres");
    assert_eq!(audited.differences(Some(1000)).await, [], "a sample found a row that no event leads to");
}

#[tokio::test]
async fn an_audit_names_the_aggregate_whose_journal_lacks_an_event() {
    let audited = Audited::new().await;
    let lost = "UPDATE journal_tail SET aggregates = array_replace(aggregates, 'order/o-0-7', NULL)";
    audited.shop.sql(lost).await;
    for most in [None, Some(1000)] {
        assert_eq!(audited.difference(most).await, "journal order/o-0-7, Postgres");
    }
}

#[tokio::test]
async fn an_audit_names_the_checkpoint_whose_tally_is_another() {
    let audited = Audited::new().await;
    let wrong = "UPDATE checkpoints SET counted_hash = counted_hash # 1 WHERE view = 'order' AND partition = 2";
    audited.shop.sql(wrong).await;
    assert_eq!(audited.difference(Some(1)).await, "order partition 2, tally of its checkpoint");
    audited.shop.sql(wrong).await;
    audited.shop.sql("UPDATE checkpoints SET counted = counted - 1 WHERE view = 'journal' AND partition = 0").await;
    assert_eq!(audited.difference(Some(1)).await, "journal partition 0, tally of its checkpoint");
}

#[tokio::test]
async fn an_audit_names_the_row_that_is_stale_or_another_in_redis() {
    let audited = Audited::new().await;
    let mut redis = audited.shop.redis().await;
    let product = audited.shop.row_in_redis(AggregateType::Product, "p-1").await;
    let order = audited.shop.row_in_redis(AggregateType::Order, "o-0-7").await;
    redis.del(product).await.unwrap();
    assert_eq!(audited.differences(None).await, [], "a missing row in Redis is reported");
    let cancelled = redis.get(&order).await.unwrap().unwrap();
    redis.set(&order, cancelled.replacen("2\n", "1\n", 1)).await.unwrap();
    assert_eq!(audited.difference(None).await, "order o-0-7, Redis");
    redis.set(&order, cancelled.replace("too late", "too soon")).await.unwrap();
    assert_eq!(audited.difference(Some(1000)).await, "order o-0-7, Redis");
}
