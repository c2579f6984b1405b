//! The reactor is killed after every step, and command-api at every request with a new step. Orders of every kind still
//! reach the same end.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::fixture::{Answer, Client, CommandProcess, Cut, Mortal, Service, Shop, Wire, eventually, read_log};

/// Longer than a test, because the test itself makes deadlines due.
const PAYMENT_WINDOW_SECS: u32 = 3600;

/// Commands each of which must have been sent.
const COMMANDS: [&str; 15] = [
    "reserve",
    "release",
    "commit",
    "allot",
    "take-back",
    "place",
    "confirm-line",
    "reject-line",
    "expire",
    "stock",
    "refuse",
    "open",
    "close",
    "hold",
    "return",
];

/// Actions of customers and clocks, with the expected outcome.
struct Story<'a> {
    shop: &'a Shop,
    commands: Client,
    queries: Client,
}

impl Story<'_> {
    /// Retries until the command is accepted, because the service may be dead.
    async fn insist(&self, path: &str, data: Value) {
        let key = [("idempotency-key", path)];
        eventually(&format!("{path} is accepted"), async || {
            let answer: Answer = self.commands.try_post(path, &key, data.clone()).await.ok()?;
            assert!([200, 503].contains(&answer.status.as_u16()), "{path}: {answer:?}");
            (answer.status == 200).then_some(())
        })
        .await;
    }

    async fn register(&self, product: &str, stock: u32) {
        let data = json!({ "name": product, "price_cents": 5, "stock": stock });
        self.insist(&format!("/v1/products/{product}/register"), data).await;
    }

    async fn schedule(&self, sale: &str, product: &str, units: u32) {
        let data = json!({
            "product": product, "opens_at": "2020-01-01T00:00:00Z", "closes_at": "2999-01-01T00:00:00Z",
            "price_cents": 5, "units": units, "limit_per_customer": 3,
        });
        self.insist(&format!("/v1/sales/{sale}/schedule"), data).await;
    }

    /// Places an order for a customer of its own.
    async fn place(&self, order: &str, lines: &[(&str, u32)], sale: Option<&str>) {
        let line = |(product, quantity): &(&str, u32)| json!({ "product": product, "quantity": quantity, "amount_cents": 5 * quantity });
        let lines: Vec<_> = lines.iter().map(line).collect();
        let mut data = json!({ "customer": order, "lines": lines });
        if let Some(sale) = sale {
            data["sale"] = json!(sale);
        }
        self.insist(&format!("/v1/orders/{order}/place"), data).await;
    }

    async fn claim(&self, order: &str, quantity: u32) {
        let name = order.strip_prefix("drop~").unwrap();
        let data = json!({ "customer": order, "quantity": quantity, "order": name });
        // The path is the idempotency key, so it has to differ from those of other claims.
        self.insist(&format!("/v1/sales/drop/claim?{order}"), data).await;
    }

    async fn pay(&self, order: &str, amount_cents: u32) {
        let data = json!({ "payment": "p", "amount_cents": amount_cents });
        self.insist(&format!("/v1/orders/{order}/pay"), data).await;
    }

    async fn cancel(&self, order: &str) {
        self.insist(&format!("/v1/orders/{order}/cancel"), json!({})).await;
    }

    /// Waits until a row has these fields.
    async fn comes_to(&self, path: &str, fields: Value) {
        eventually(&format!("{path} comes to {fields}"), async || self.is(path, &fields).await.then_some(())).await;
    }

    async fn is(&self, path: &str, fields: &Value) -> bool {
        let row = self.queries.get(path).await.json()["data"].take();
        let is = |(name, value): (&String, &Value)| row[name] == *value;
        fields.as_object().unwrap().iter().all(is)
    }

    async fn all_come_to(&self, orders: &[&str], status: &str) {
        let paths = orders.iter().map(|order| format!("/v1/orders/{order}"));
        let paths: Vec<_> = paths.collect();
        join_all(paths.iter().map(|path| self.comes_to(path, json!({ "status": status })))).await;
    }

    /// Makes a deadline due until it has taken effect.
    async fn is_due(&self, kind: &str, aggregate: &str, path: &str, status: &str) {
        let due = format!(
            "UPDATE deadlines SET due_at = now() WHERE kind = '{kind}' AND aggregate = '{aggregate}' AND due_at > now()"
        );
        let fields = json!({ "status": status });
        eventually(&format!("{aggregate} is {status}"), async || {
            self.shop.sql(&due).await;
            self.is(path, &fields).await.then_some(())
        })
        .await;
    }

    async fn play(&self) {
        self.open().await;
        self.order().await;
        self.end().await;
    }

    /// Opens a sale with its units, and schedules one that gets none.
    async fn open(&self) {
        for (product, stock) in [("cd", 100), ("lp", 100), ("few", 1)] {
            self.register(product, stock).await;
        }
        self.schedule("drop", "cd", 20).await;
        self.schedule("greedy", "few", 5).await;
        self.comes_to("/v1/sales/drop", json!({ "status": "open" })).await;
        self.comes_to("/v1/sales/greedy", json!({ "status": "refused" })).await;
    }

    /// Places orders of every kind concurrently.
    async fn order(&self) {
        self.place("paid", &[("cd", 1), ("lp", 2)], None).await;
        self.place("refused", &[("cd", 1), ("few", 2)], None).await;
        self.place("unpaid", &[("lp", 1)], None).await;
        self.place("cancelled", &[("lp", 1)], None).await;
        for (order, quantity) in [("drop~c-paid", 2), ("drop~c-unpaid", 1), ("drop~c-cancelled", 1), ("drop~c-late", 1)]
        {
            self.claim(order, quantity).await;
        }
        self.place("h-paid", &[("cd", 2)], Some("drop")).await;
        self.place("h-cancelled", &[("cd", 1)], Some("drop")).await;
        self.place("h-refused", &[("cd", 4)], Some("drop")).await;
        self.all_come_to(&["paid", "unpaid", "cancelled"], "confirmed").await;
        self.all_come_to(
            &["drop~c-paid", "drop~c-unpaid", "drop~c-cancelled", "drop~c-late", "h-paid", "h-cancelled"],
            "confirmed",
        )
        .await;
        self.all_come_to(&["refused", "h-refused"], "rejected").await;
    }

    async fn end(&self) {
        for (order, amount_cents) in [("paid", 15), ("drop~c-paid", 10), ("h-paid", 10)] {
            self.pay(order, amount_cents).await;
        }
        for order in ["cancelled", "drop~c-cancelled", "h-cancelled"] {
            self.cancel(order).await;
        }
        for order in ["unpaid", "drop~c-unpaid"] {
            self.is_due("expire-order", &format!("order/{order}"), &format!("/v1/orders/{order}"), "expired").await;
        }
        self.comes_to("/v1/sales/drop", json!({ "claimed": 5, "committed": 4 })).await;
        self.is_due("close-sale", "sale/drop", "/v1/sales/drop", "closed").await;
        self.cancel("drop~c-late").await;
        self.all_come_to(&["paid", "drop~c-paid", "h-paid"], "paid").await;
        self.all_come_to(&["cancelled", "drop~c-cancelled", "h-cancelled", "drop~c-late"], "cancelled").await;
        self.comes_to("/v1/sales/drop", json!({ "claimed": 4, "committed": 4 })).await;
        self.comes_to("/v1/products/cd", json!({ "available": 95, "stock": 95, "reserved": 0 })).await;
        self.comes_to("/v1/products/lp", json!({ "available": 98, "stock": 98, "reserved": 0 })).await;
    }

    /// Waits until nothing is in flight: the reactor and the view have processed the whole log, and the log has not
    /// grown meanwhile.
    async fn comes_to_rest(&self) {
        eventually("nothing is in flight", async || {
            let log = read_log(self.shop).await;
            for partition in 0..self.shop.partitions {
                let last = log.iter().filter(|commit| commit.partition == partition).map(|commit| commit.offset).max();
                let have = format!(
                    "SELECT count(*) FROM checkpoints WHERE view IN ('reactor', 'order') AND partition = {partition}
                         AND next_offset > {}",
                    last.unwrap_or(-1)
                );
                if self.shop.sql(&have).await != Some(2) {
                    return None;
                }
            }
            (read_log(self.shop).await == log).then_some(())
        })
        .await;
    }

    /// Asserts that everything reserved was either released or sold, exactly once.
    async fn check(&self) {
        self.comes_to_rest().await;
        self.comes_to("/v1/products/cd", json!({ "available": 95, "stock": 95, "reserved": 0, "sold": 1 })).await;
        self.comes_to("/v1/products/lp", json!({ "available": 98, "stock": 98, "reserved": 0, "sold": 2 })).await;
        self.comes_to("/v1/products/few", json!({ "available": 1, "stock": 1, "reserved": 0, "sold": 0 })).await;
        self.comes_to("/v1/sales/drop", json!({ "claimed": 4, "committed": 4, "customers": 2 })).await;
        // The number of units that an order holds of a product or a sale is never negative and zero in the end.
        let held = "SELECT count(*) FROM (
                 SELECT sum(change) OVER (PARTITION BY aggregate, name ORDER BY version) AS held,
                        lead(version) OVER (PARTITION BY aggregate, name ORDER BY version) IS NULL AS is_last
                 FROM (
                     SELECT aggregate, version, data ->> 'order' AS name,
                            CASE WHEN type LIKE '%.reserved.%' OR type LIKE '%.claimed.%' THEN 1 ELSE -1 END AS change
                     FROM journal
                     WHERE type ~ '^product.(reserved|released|committed)' OR type ~ '^sale.(claimed|returned|committed)'
                 ) AS changes
             ) AS steps
             WHERE held NOT IN (0, 1) OR is_last AND held <> 0";
        assert_eq!(self.shop.sql(held).await, Some(0));
        let committed = "SELECT count(*) FROM journal WHERE type ~ '^(product|sale).committed'";
        assert_eq!(self.shop.sql(committed).await, Some(4));
        let twice = "SELECT count(*) FROM (
                 SELECT aggregate, type FROM journal WHERE type ~ '^(order|sale.(stocked|opened|closed|refused))'
                     AND type !~ 'line' GROUP BY aggregate, type HAVING count(*) > 1
             ) AS twice";
        assert_eq!(self.shop.sql(twice).await, Some(0));
        assert_eq!(self.shop.sql("SELECT count(*) FROM parked").await, Some(0));
        assert_eq!(self.shop.sql("SELECT count(*) FROM deadlines").await, Some(0));
        let config = projector::Config::from_env(&self.shop.env([])).unwrap();
        let report = projector::audit::audit(&config, None).await.unwrap();
        assert_eq!(report.differences, []);
    }
}

fn every_step_was_taken(wire: &Wire) {
    for command in COMMANDS {
        assert!(wire.has_seen(&format!(r#""command":"{command}""#)), "{command} was never sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reactor_that_dies_after_every_step_brings_every_order_to_its_end() {
    let shop = Shop::with_views(2).await;
    let services = [shop.command_api().await, shop.projector().await, shop.query_api().await];
    let [command_api, _, query_api] = &services;
    let wire = Wire::to(&command_api.internal_addr(), Cut::AfterOneStep).await;
    let env = shop.reactor_env(&wire.addr.to_string(), PAYMENT_WINDOW_SECS);
    let mut reactor = Mortal::projector(&env).await;
    let story = Story { shop: &shop, commands: command_api.client(), queries: query_api.client() };
    let dying = async {
        loop {
            wire.tripped().await;
            reactor.kill().await;
            wire.mend();
            reactor = Mortal::projector(&env).await;
        }
    };
    let told = async {
        story.play().await;
        story.check().await;
    };
    tokio::select! {
        () = told => {}
        () = dying => {}
    }
    every_step_was_taken(&wire);
    assert!(wire.trips() >= 40, "the reactor died {} times", wire.trips());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_api_that_dies_at_every_request_with_a_new_step_brings_every_order_to_its_end() {
    let shop = Shop::with_views(2).await;
    let mut command_api = CommandProcess::start(&shop).await;
    let services = [shop.projector().await, shop.query_api().await];
    let wire = Wire::to(&command_api.internal, Cut::AfterTheRequest).await;
    let _reactor = {
        let reactor = Service::projector(&shop.reactor_env(&wire.addr.to_string(), PAYMENT_WINDOW_SECS));
        reactor.wait_ready().await;
        reactor
    };
    let story = Story { shop: &shop, commands: command_api.client(), queries: services[1].client() };
    let dying = async {
        loop {
            wire.tripped().await;
            command_api.kill_and_start().await;
            wire.mend();
        }
    };
    let told = async {
        story.play().await;
        story.check().await;
    };
    tokio::select! {
        () = told => {}
        () = dying => {}
    }
    every_step_was_taken(&wire);
    assert!(wire.trips() >= 10, "command-api died {} times", wire.trips());
}
