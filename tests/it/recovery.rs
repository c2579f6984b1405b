//! Postgres and Redis are lost, and filled again from the log alone.

use std::collections::BTreeSet;

use projector::Config;
use projector::audit::audit;
use projector::recover::{Recovered, recover};
use serde_json::{Value, json};

use crate::fixture::{Client, Service, Shop, append_values, eventually, free_addr, read_log, server, sql};

/// Long enough for what is done before the reactor stops, on a busy machine.
const PAYMENT_WINDOW_SECS: u32 = 25;
const PATHS: [&str; 14] = [
    "/v1/products/cd",
    "/v1/products/lp",
    "/v1/products/cd/history",
    "/v1/orders/paid",
    "/v1/orders/rejected",
    "/v1/orders/expiring",
    "/v1/orders/cancelled",
    "/v1/orders/lost",
    "/v1/orders/drop~claimed",
    "/v1/sales/drop",
    "/v1/views/customer/ann",
    "/v1/best-sellers",
    "/v1/low-stock",
    "/v1/views/order?limit=100",
];

/// A shop whose reactor may stop while the others serve.
struct Open {
    shop: Shop,
    commands: Client,
    queries: Client,
    services: [Service; 3],
}

impl Open {
    async fn of(shop: Shop) -> Self {
        let command_api = shop.command_api().await;
        let services = [shop.projector().await, shop.query_api().await];
        let (commands, queries) = (command_api.client(), services[1].client());
        let [projector, query_api] = services;
        Self { shop, commands, queries, services: [command_api, projector, query_api] }
    }

    async fn reactor(&self) -> Service {
        self.shop.reactor(&self.services[0], PAYMENT_WINDOW_SECS).await
    }

    async fn send(&self, path: &str, data: Value, events: &[&str]) -> String {
        self.commands.post(path, data).await.accepted(events).token()
    }

    async fn place(&self, order: &str, product: &str, quantity: u32) {
        let line = json!({ "product": product, "quantity": quantity, "amount_cents": 500 * quantity });
        let data = json!({ "customer": "ann", "lines": [line] });
        self.send(&format!("/v1/orders/{order}/place"), data, &["order.placed.v1"]).await;
    }

    async fn comes_to(&self, path: &str, fields: Value) {
        eventually(&format!("{path} comes to {fields}"), async || {
            let row = self.queries.get(path).await.json()["data"].take();
            fields.as_object().unwrap().iter().all(|(name, value)| row[name] == *value).then_some(())
        })
        .await;
    }

    async fn is(&self, order: &str, status: &str) {
        self.comes_to(&format!("/v1/orders/{order}"), json!({ "status": status })).await;
    }

    /// Does some of everything that a reactor completes.
    async fn trade(&self) {
        for (product, stock) in [("cd", 100), ("lp", 1)] {
            let data = json!({ "name": product, "price_cents": 500, "stock": stock });
            self.send(&format!("/v1/products/{product}/register"), data, &["product.registered.v1"]).await;
        }
        let sale = json!({
            "product": "cd", "opens_at": "2020-01-01T00:00:00Z", "closes_at": "2999-01-01T00:00:00Z",
            "price_cents": 300, "units": 10, "limit_per_customer": 2,
        });
        self.send("/v1/sales/drop/schedule", sale, &["sale.scheduled.v1"]).await;
        self.place("paid", "cd", 2).await;
        self.place("cancelled", "cd", 3).await;
        // Later there is stock for it. An order that was rejected must not take it.
        self.place("rejected", "lp", 5).await;
        self.is("rejected", "rejected").await;
        self.send("/v1/products/lp/restock", json!({ "quantity": 50 }), &["product.restocked.v1"]).await;
        self.is("paid", "confirmed").await;
        self.is("cancelled", "confirmed").await;
        self.comes_to("/v1/sales/drop", json!({ "status": "open" })).await;
        let claim = json!({ "customer": "ann", "quantity": 2, "order": "claimed" });
        self.send("/v1/sales/drop/claim", claim, &["sale.claimed.v1"]).await;
        self.is("drop~claimed", "confirmed").await;
        for (order, cents) in [("paid", 1000), ("drop~claimed", 600)] {
            let pay = json!({ "payment": format!("pay-{order}"), "amount_cents": cents });
            self.send(&format!("/v1/orders/{order}/pay"), pay, &["order.paid.v2"]).await;
        }
        self.comes_to("/v1/products/cd", json!({ "sold": 2 })).await;
        self.comes_to("/v1/sales/drop", json!({ "committed": 2 })).await;
        self.place("expiring", "cd", 4).await;
        self.is("expiring", "confirmed").await;
    }

    /// Returns the answers to queries, but for what each log end adds to them.
    async fn views(&self, token: &str) -> Vec<(u16, Option<String>, Value)> {
        let mut all = Vec::new();
        for path in PATHS {
            let fresh = [("consistency-token", token), ("prefer", "wait=20")];
            let answer = self.queries.get_with(path, &fresh).await;
            all.push((answer.status.as_u16(), answer.header("etag").map(ToOwned::to_owned), answer.json()));
        }
        all
    }

    async fn stop(self) -> Shop {
        for service in self.services {
            service.stop().await;
        }
        self.shop
    }
}

/// Replaces the shop's database by one with empty tables, and removes its keys from Redis.
async fn lose_everything_but_the_log(shop: &Shop) {
    let (server, name) = (server("TEST_POSTGRES_URL"), &shop.topic);
    sql(&server, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
    sql(&server, &format!("CREATE DATABASE {name}")).await;
    projector::migrate(&shop.postgres_url.as_str().into()).await.unwrap();
    let mut redis = shop.redis().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("*{}*", shop.prefix)).query_async(&mut redis).await.unwrap();
    assert!(!keys.is_empty(), "Redis had nothing");
    () = redis::cmd("UNLINK").arg(keys).query_async(&mut redis).await.unwrap();
}

fn config(shop: &Shop) -> Config {
    let window = ("PAYMENT_WINDOW_SECS", PAYMENT_WINDOW_SECS.to_string());
    Config::from_env(&shop.env([window])).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_alone_gives_back_all_views_and_reactors_complete_what_was_open_and_nothing_else() {
    let open = Open::of(Shop::with_views(3).await).await;
    let reactor = open.reactor().await;
    open.trade().await;
    reactor.stop().await;
    // Their reactions are open when everything is lost.
    open.place("lost", "cd", 7).await;
    open.send("/v1/orders/cancelled/cancel", json!({}), &["order.cancelled.v2"]).await;
    let key = ("idempotency-key", uuid::Uuid::now_v7().to_string());
    let restock = json!({ "quantity": 1 });
    let keyed = [(key.0, key.1.as_str())];
    let answer = open.commands.post_with("/v1/products/cd/restock", &keyed, restock.clone()).await;
    let token = ["cancelled", "lost"].map(|order| format!("/v1/orders/{order}"));
    let mut tokens = vec![answer.token()];
    for path in token {
        tokens.push(
            eventually("the order is shown", async || {
                let answer = open.queries.get(&path).await;
                let status = answer.json()["data"]["status"].take();
                (status == "cancelled" || status == "placed").then(|| answer.token())
            })
            .await,
        );
    }
    let token = tokens.join(",");
    let before = open.views(&token).await;
    let shop = open.stop().await;
    let log = read_log(&shop).await;

    lose_everything_but_the_log(&shop).await;
    let config = config(&shop);
    let recovered = recover(&config, |_| ()).await.unwrap();
    let events = log.iter().map(|one| one.events.len() as u64).sum();
    // Open: that `lost` was placed, and that `cancelled` was cancelled. Deadlines: of the order that is not paid, and the
    // end of the sale.
    assert_eq!(recovered, Recovered { records: recovered.records, events, open: 2, deadlines: 2, parked: 0 });
    assert_eq!(read_log(&shop).await, log, "the recovery wrote to the log");
    assert!(recover(&config, |_| ()).await.unwrap_err().to_string().contains("a reactor has begun"));

    let open = Open::of(shop).await;
    assert_eq!(open.views(&token).await, before);
    assert_eq!(audit(&config, None).await.unwrap().differences, []);
    let again = open.commands.post_with("/v1/products/cd/restock", &keyed, restock).await;
    assert_eq!((again.header("idempotent-replayed"), &again.text), (Some("true"), &answer.text));

    let _reactor = open.reactor().await;
    open.is("lost", "confirmed").await;
    open.is("expiring", "expired").await;
    open.is("lost", "expired").await;
    open.comes_to("/v1/products/cd", json!({ "reserved": 0 })).await;
    let (new, shop) = (read_log(&open.shop).await, &open.shop);
    let known: BTreeSet<_> = log.iter().map(|one| (one.partition, one.offset)).collect();
    let mut sent: Vec<_> = new.into_iter().filter(|one| !known.contains(&(one.partition, one.offset))).collect();
    sent.sort_by(|one, other| (&one.aggregate, one.version).cmp(&(&other.aggregate, other.version)));
    let sent: Vec<_> = sent.into_iter().map(|one| (one.aggregate, one.events.join(" "))).collect();
    let of = |aggregate: &str| {
        let of = sent.iter().filter(|(name, _)| name == aggregate);
        of.map(|(_, events)| events.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(of("order/lost"), ["order.line-confirmed.v1 order.confirmed.v1", "order.expired.v1"], "{sent:?}");
    assert_eq!(of("order/expiring"), ["order.expired.v1"]);
    let mut of_product = of("product/cd");
    of_product.sort_unstable();
    let released = "product.released.v2";
    assert_eq!(of_product, [released, released, released, "product.reserved.v2"], "{sent:?}");
    assert_eq!(sent.len(), 3 + 4, "{sent:?}");
    let parked = shop.sql("SELECT count(*) FROM parked").await;
    assert_eq!(parked, Some(0), "what was open is done");
    assert_eq!(audit(&config, None).await.unwrap().differences, []);
}

/// Returns a log that has the first records of the shop's log, with the shop's database.
async fn restored(shop: &Shop, missing: usize) -> Shop {
    let restored = Shop::new(1).await;
    let values = crate::fixture::read_values(shop, 0).await;
    let kept = &values[..values.len() - missing];
    append_values(&restored, 0, &kept.iter().map(|value| (String::new(), value.clone())).collect::<Vec<_>>()).await;
    Shop { topic: restored.topic, ..shop.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_shorter_than_postgres_halts_its_readers_with_the_number_of_missing_records() {
    let shop = Shop::with_views(1).await;
    let open = Open::of(shop).await;
    let reactor = open.reactor().await;
    open.place("first", "none", 1).await;
    open.is("first", "rejected").await;
    let restock = json!({ "name": "cd", "price_cents": 500, "stock": 9 });
    let token = open.send("/v1/products/cd/register", restock, &["product.registered.v1"]).await;
    open.queries.is_stored(&token).await;
    reactor.stop().await;
    let shop = open.stop().await;

    let shop = restored(&shop, 2).await;
    let projector = shop.start_projector();
    let says = async |service: &Service, condition: &str, text: &str| {
        let admin = service.admin_client();
        eventually(&format!("{condition} says {text:?}"), async || {
            let waiting = admin.get("/readyz").await.text;
            waiting.contains(text).then_some(())
        })
        .await;
    };
    says(&projector, "kafka", "lacks the last 2 records of partition 0").await;
    let command_api = shop.start_command_api("0").await;
    says(&command_api, "partitions", "the log was restored without its last records").await;
    let reactor = Service::projector(&shop.reactor_env(&command_api.internal_addr(), PAYMENT_WINDOW_SECS));
    says(&reactor, "reactor", "lacks the last").await;
    let refused = recover(&config(&shop), |_| ()).await.unwrap_err().to_string();
    assert!(refused.contains("a reactor has begun") || refused.contains("lacks the last 2 records"), "{refused}");
}

#[tokio::test]
async fn a_recovery_names_what_it_lacks() {
    let shop = Shop::with_empty_database(1).await;
    let refused = recover(&config(&shop), |_| ()).await.unwrap_err().to_string();
    assert!(refused.contains("run `projector migrate`"), "{refused}");
    let away = Shop { postgres_url: format!("postgres://nobody@{}/none", free_addr()), ..shop.clone() };
    let refused = format!("{:#}", recover(&config(&away), |_| ()).await.unwrap_err());
    assert!(refused.contains("Postgres"), "{refused}");
    let nothing = Shop { topic: "it_none".to_owned(), ..shop };
    let refused = recover(&config(&nothing), |_| ()).await.unwrap_err().to_string();
    assert!(refused.contains("does not exist"), "{refused}");
}
