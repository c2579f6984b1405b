//! Reactions to events, also while services crash: orders reach their end, sales give back unsold units, and nothing
//! stays reserved forever.

mod begin;
mod retries;

use schemas::events::WireEvent;
use schemas::idempotency::IdempotencyKey;
use schemas::record::{Claim, Commit, Epoch, Record};
use schemas::time::parse_rfc3339;
use serde_json::{Value, json};

use crate::fixture::{Answer, Client, Service, Shop, append, eventually};

/// A shop with all services, including a reactor.
pub(crate) struct Whole {
    shop: Shop,
    pub(crate) commands: Client,
    pub(crate) queries: Client,
    command_api: Option<Service>,
    reactor: Option<Service>,
    _services: [Service; 2],
}

impl Whole {
    pub(crate) async fn new(payment_window_secs: u32) -> Self {
        Self::of(Shop::with_views(3).await, payment_window_secs).await
    }

    async fn of(shop: Shop, payment_window_secs: u32) -> Self {
        let command_api = shop.command_api().await;
        let reactor = shop.reactor(&command_api, payment_window_secs).await;
        let services = [shop.projector().await, shop.query_api().await];
        let (commands, queries) = (command_api.client(), services[1].client());
        Self { shop, commands, queries, command_api: Some(command_api), reactor: Some(reactor), _services: services }
    }

    /// Crashes command-api and starts another one at the same addresses.
    async fn restart_command_api(&mut self) {
        let old = self.command_api.take().unwrap();
        let env = self.shop.write_env([
            ("PARTITIONS", format!("0-{}", self.shop.partitions - 1)),
            ("HTTP_ADDR", old.http_addr()),
            ("INTERNAL_ADDR", old.internal_addr()),
        ]);
        old.crash().await;
        let next = eventually("the addresses are free", async || Service::try_command_api(&env).await).await;
        next.wait_ready().await;
        self.commands = next.client();
        self.command_api = Some(next);
    }

    pub(crate) async fn register(&self, product: &str, stock: u32) {
        let data = json!({ "name": product, "price_cents": 500, "stock": stock });
        self.commands
            .post(&format!("/v1/products/{product}/register"), data)
            .await
            .accepted(&["product.registered.v1"]);
    }

    /// Places an order; `lines` are products and quantities, at 500 cents each.
    pub(crate) async fn place(&self, id: &str, lines: &[(&str, u32)]) -> Answer {
        let line = |(product, quantity): &(&str, u32)| json!({ "product": product, "quantity": quantity, "amount_cents": 500 * quantity });
        let lines: Vec<_> = lines.iter().map(line).collect();
        self.commands.post(&format!("/v1/orders/{id}/place"), json!({ "customer": "ann", "lines": lines })).await
    }

    pub(crate) async fn pay(&self, id: &str, amount_cents: u32) -> Answer {
        let data = json!({ "payment": format!("pay-{id}"), "amount_cents": amount_cents });
        self.commands.post(&format!("/v1/orders/{id}/pay"), data).await
    }

    pub(crate) async fn schedule(&self, sale: &str, units: u32, limit: u32) {
        let data = json!({
            "product": "cd", "opens_at": "2020-01-01T00:00:00Z", "closes_at": "2999-01-01T00:00:00Z",
            "price_cents": 300, "units": units, "limit_per_customer": limit,
        });
        self.commands.post(&format!("/v1/sales/{sale}/schedule"), data).await.accepted(&["sale.scheduled.v1"]);
    }

    pub(crate) async fn claim(&self, order: &str, customer: &str, quantity: u32) -> Answer {
        let data = json!({ "customer": customer, "quantity": quantity, "order": order });
        self.commands.post("/v1/sales/drop/claim", data).await
    }

    /// Returns a row's data, null if there is none.
    async fn row(&self, path: &str) -> Value {
        self.queries.get(path).await.json()["data"].take()
    }

    /// Waits until a row has these fields and returns the token of the answer.
    pub(crate) async fn comes_to(&self, path: &str, fields: Value) -> String {
        eventually(&format!("{path} comes to {fields}"), async || {
            let answer = self.queries.get(path).await;
            let row = answer.json()["data"].take();
            let is = |(name, value): (&String, &Value)| row[name] == *value;
            fields.as_object().unwrap().iter().all(is).then(|| answer.token())
        })
        .await
    }
}

#[tokio::test]
async fn an_order_is_confirmed_when_all_its_lines_are_reserved_and_its_payment_commits_them() {
    let whole = Whole::new(600).await;
    whole.register("cd", 5).await;
    whole.register("lp", 5).await;
    // Two lines of one product become one reservation.
    whole.place("o", &[("cd", 1), ("lp", 2), ("cd", 2)]).await;
    whole.comes_to("/v1/orders/o", json!({ "status": "confirmed" })).await;
    whole.comes_to("/v1/products/cd", json!({ "available": 2, "reserved": 3 })).await;
    whole.comes_to("/v1/products/lp", json!({ "available": 3, "reserved": 2 })).await;
    whole.pay("o", 2500).await.accepted(&["order.paid.v2"]);
    whole.comes_to("/v1/products/cd", json!({ "stock": 2, "reserved": 0, "sold": 3 })).await;
    whole.comes_to("/v1/products/lp", json!({ "stock": 3, "reserved": 0, "sold": 2 })).await;
    whole.comes_to("/v1/views/best_sellers/cd", json!({ "units": 3, "amount_cents": 1500 })).await;
    let best = whole.queries.get("/v1/best-sellers?limit=1").await.json();
    assert_eq!(best["rows"][0]["data"], json!({ "product": "cd", "units": 3, "amount_cents": 1500 }));
    let low = whole.queries.get("/v1/low-stock").await.json();
    assert_eq!(low["rows"][0]["data"], json!({ "product": "cd", "available": 2 }));
}

#[tokio::test]
async fn one_line_that_cannot_be_had_rejects_the_order_and_gives_back_the_others() {
    let whole = Whole::new(600).await;
    whole.register("cd", 5).await;
    whole.register("lp", 1).await;
    whole.place("o", &[("cd", 2), ("lp", 2)]).await;
    whole.comes_to("/v1/orders/o", json!({ "status": "rejected", "reason": "out_of_stock" })).await;
    whole.comes_to("/v1/products/cd", json!({ "available": 5, "reserved": 0 })).await;
    whole.place("none", &[("unknown", 1)]).await;
    whole.comes_to("/v1/orders/none", json!({ "status": "rejected", "reason": "not_registered" })).await;
}

#[tokio::test]
async fn an_order_that_is_not_paid_in_time_expires_and_one_that_is_cancelled_gives_back() {
    let whole = Whole::new(3).await;
    whole.register("cd", 5).await;
    whole.place("late", &[("cd", 2)]).await;
    whole.place("paid", &[("cd", 1)]).await;
    whole.comes_to("/v1/orders/paid", json!({ "status": "confirmed" })).await;
    whole.pay("paid", 500).await.accepted(&["order.paid.v2"]);
    whole.comes_to("/v1/orders/late", json!({ "status": "expired" })).await;
    whole.comes_to("/v1/products/cd", json!({ "available": 4, "reserved": 0, "sold": 1 })).await;
    whole.pay("late", 1000).await.rejected("expired");
    let left = async || (whole.shop.sql("SELECT count(*) FROM deadlines").await == Some(0)).then_some(());
    eventually("no deadline is left", left).await;
    whole.comes_to("/v1/orders/paid", json!({ "status": "paid" })).await;
}

#[tokio::test]
async fn a_sale_takes_its_units_from_the_stock_and_each_claim_becomes_an_order() {
    let whole = Whole::new(600).await;
    whole.register("cd", 10).await;
    whole.schedule("drop", 6, 3).await;
    whole.comes_to("/v1/sales/drop", json!({ "status": "open", "left": 6 })).await;
    whole.comes_to("/v1/products/cd", json!({ "stock": 4, "available": 4 })).await;
    let claimed = whole.claim("o-1", "ann", 2).await.accepted(&["sale.claimed.v1"]);
    assert_eq!(claimed.json()["order"], "drop~o-1");
    whole.claim("o-3", "ann", 2).await.rejected("over_limit");
    whole.claim("o-2", "bob", 3).await.accepted(&["sale.claimed.v1"]);
    whole.claim("o-3", "eve", 2).await.rejected("sold_out");
    let first = json!({ "status": "confirmed", "customer": "ann", "total_cents": 600 });
    whole.comes_to("/v1/orders/drop~o-1", first).await;
    whole.comes_to("/v1/orders/drop~o-2", json!({ "status": "confirmed", "total_cents": 900 })).await;
    whole.pay("drop~o-1", 600).await.accepted(&["order.paid.v2"]);
    let fields = json!({ "claimed": 5, "committed": 2, "left": 1, "customers": 2 });
    whole.comes_to("/v1/sales/drop", fields).await;
    whole.commands.post("/v1/sales/drop/close", json!({})).await.accepted(&["sale.closed.v1"]);
    whole.comes_to("/v1/products/cd", json!({ "stock": 5, "available": 5 })).await;
    // Units that are returned after the sale has closed go back to the product, too.
    whole.commands.post("/v1/orders/drop~o-2/cancel", json!({})).await.accepted(&["order.cancelled.v2"]);
    whole.comes_to("/v1/products/cd", json!({ "stock": 8, "available": 8 })).await;
    whole.comes_to("/v1/sales/drop", json!({ "claimed": 2, "returned": 3, "status": "closed" })).await;
    whole.claim("o-4", "eve", 1).await.rejected("sale_not_open");
    whole.comes_to("/v1/views/best_sellers/cd", json!({ "units": 2, "amount_cents": 600 })).await;
}

#[tokio::test]
async fn an_acknowledged_claim_has_its_order_whatever_strangers_placed() {
    let whole = Whole::new(600).await;
    whole.register("cd", 10).await;
    whole.schedule("drop", 6, 3).await;
    whole.comes_to("/v1/sales/drop", json!({ "status": "open", "left": 6 })).await;
    // One order has the name that a buyer is going to use, the other one the name that his order will have.
    whole.place("mine", &[("cd", 1)]).await.accepted(&["order.placed.v1"]);
    whole.place("drop~mine", &[("cd", 1)]).await.rejected("reserved_name");
    let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 0 }]);
    let record = json!({ "customer": "eve", "lines": lines, "ordered_at": "2000-01-01T00:00:00Z" });
    whole.commands.post("/v1/orders/drop~mine/record", record).await.rejected("reserved_name");
    for events in [&["sale.claimed.v1"][..], &[]] {
        let claimed = whole.claim("mine", "bob", 2).await.accepted(events);
        assert_eq!(claimed.json()["order"], "drop~mine", "{claimed:?}");
    }
    let claim = json!({ "aggregate": "sales", "id": "drop", "command": "claim",
        "data": { "customer": "bob", "quantity": 1, "order": "more" }, "key": "k" });
    for replayed in [json!(null), json!(true)] {
        let line = whole.commands.batch(std::slice::from_ref(&claim)).await.remove(0);
        assert_eq!((&line["order"], &line["replayed"]), (&json!("drop~more"), &replayed), "{line}");
    }
    let fields = json!({ "status": "confirmed", "customer": "bob", "total_cents": 600 });
    whole.comes_to("/v1/orders/drop~mine", fields).await;
    whole.comes_to("/v1/orders/drop~more", json!({ "status": "confirmed" })).await;
    whole.comes_to("/v1/orders/mine", json!({ "status": "confirmed", "customer": "ann" })).await;
    whole.comes_to("/v1/sales/drop", json!({ "claimed": 3, "returned": 0 })).await;
    whole.claim("a~b", "bob", 1).await.problem(400, "invalid-request", "order: ");
}

#[tokio::test]
async fn a_buyer_pays_the_price_and_every_view_shows_that_one_amount() {
    let whole = Whole::new(600).await;
    whole.register("cd", 10).await;
    whole.schedule("drop", 4, 3).await;
    whole.comes_to("/v1/sales/drop", json!({ "status": "open", "left": 4 })).await;
    let place = async |id: &str, sale: Option<&str>, lines: &[(u32, u32)]| {
        let line =
            |(quantity, cents): &(u32, u32)| json!({ "product": "cd", "quantity": quantity, "amount_cents": cents });
        let lines: Vec<_> = lines.iter().map(line).collect();
        let data = json!({ "customer": "ann", "lines": lines, "sale": sale });
        whole.commands.post(&format!("/v1/orders/{id}/place"), data).await.accepted(&["order.placed.v1"]);
    };
    place("free", None, &[(5, 0)]).await;
    place("dear", None, &[(1, 501)]).await;
    place("a-cent", Some("drop"), &[(1, 1)]).await;
    place("not-of-the-sale", None, &[(1, 300)]).await;
    for order in ["free", "dear", "a-cent", "not-of-the-sale"] {
        let path = format!("/v1/orders/{order}");
        whole.comes_to(&path, json!({ "status": "rejected", "reason": "wrong_price" })).await;
    }
    whole.comes_to("/v1/products/cd", json!({ "available": 6, "reserved": 0 })).await;
    // Lines of one product are checked by their sum.
    place("o", None, &[(1, 400), (1, 600)]).await;
    place("of-the-sale", Some("drop"), &[(2, 600)]).await;
    for (order, cents) in [("o", 1000), ("of-the-sale", 600)] {
        let path = format!("/v1/orders/{order}");
        whole.comes_to(&path, json!({ "status": "confirmed", "total_cents": cents })).await;
        whole.pay(order, cents).await.accepted(&["order.paid.v2"]);
    }
    let sums = json!({ "units": 4, "amount_cents": 1600 });
    whole.comes_to("/v1/views/best_sellers/cd", sums.clone()).await;
    whole.comes_to("/v1/customers/ann", sums.clone()).await;
    let revenue = whole.queries.get("/v1/revenue").await.json();
    assert_eq!(revenue["rows"][0]["data"], json!({ "orders": 2, "units": 4, "amount_cents": 1600 }));
    whole.comes_to("/v1/sales/drop", json!({ "claimed": 2, "committed": 2 })).await;
}

#[tokio::test]
async fn a_sale_whose_product_lacks_the_units_is_refused_and_an_order_of_it_rejected() {
    let whole = Whole::new(600).await;
    whole.register("cd", 1).await;
    whole.schedule("drop", 6, 3).await;
    whole.comes_to("/v1/sales/drop", json!({ "status": "refused", "reason": "out_of_stock" })).await;
    let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 300 }]);
    let data = json!({ "customer": "ann", "lines": lines, "sale": "drop" });
    whole.commands.post("/v1/orders/o/place", data).await.accepted(&["order.placed.v1"]);
    whole.comes_to("/v1/orders/o", json!({ "status": "rejected", "reason": "sale_not_open" })).await;
    whole.comes_to("/v1/products/cd", json!({ "available": 1 })).await;
}

#[tokio::test]
async fn an_order_from_elsewhere_counts_and_causes_nothing() {
    let whole = Whole::new(600).await;
    whole.register("cd", 5).await;
    // The amount is not the price, and one product does not exist.
    let lines = json!([
        { "product": "cd", "quantity": 1, "amount_cents": 7 },
        { "product": "of-old", "quantity": 2, "amount_cents": 8 },
    ]);
    let record = async |id: &str, at: &str| {
        let data = json!({ "customer": "bob", "lines": lines, "ordered_at": at });
        whole.commands.post(&format!("/v1/orders/{id}/record"), data).await
    };
    let mut tokens = Vec::new();
    for (id, at) in
        [("old", "1997-01-01T00:00:00Z"), ("gone", "1997-01-01T00:00:00Z"), ("offline", "2026-01-02T09:00:00Z")]
    {
        tokens.push(record(id, at).await.accepted(&["order.recorded.v1"]).token());
        record(id, at).await.accepted(&[]);
    }
    record("ahead", "2999-01-01T00:00:00Z").await.rejected("ordered_in_future");
    record("old", "1997-01-02T00:00:00Z").await.rejected("already_placed");
    whole.place("old", &[("cd", 1)]).await.rejected("already_placed");
    whole.pay("old", 15).await.rejected("is_recorded");
    let cancelled = whole.commands.post("/v1/orders/gone/cancel", json!({})).await;
    tokens.push(cancelled.accepted(&["order.cancelled.v2"]).token());
    whole.place("new", &[("cd", 1)]).await;
    whole.comes_to("/v1/orders/new", json!({ "status": "confirmed" })).await;
    whole.comes_to("/v1/products/cd", json!({ "reserved": 1, "available": 4 })).await;
    for (id, status) in [("old", "recorded"), ("offline", "recorded"), ("gone", "cancelled")] {
        whole.comes_to(&format!("/v1/orders/{id}"), json!({ "status": status })).await;
    }
    // Two of the three orders without the cancellation give the same sums, so wait until everything is shown.
    whole.queries.is_stored(&tokens.join(",")).await;
    let sums = json!({ "orders": 2, "units": 6, "amount_cents": 30, "first_order_at": "1997-01-01T00:00:00Z" });
    whole.comes_to("/v1/customers/bob", sums).await;
    let day = whole.queries.get("/v1/revenue?to=1997-12-31").await.json();
    assert_eq!(day["rows"][0]["data"], json!({ "orders": 1, "units": 3, "amount_cents": 15 }));
    assert_eq!(whole.queries.get("/v1/best-sellers").await.json()["rows"], json!([]));
}

/// Returns the status of each order.
async fn statuses(whole: &Whole, orders: usize) -> Vec<String> {
    let mut statuses = Vec::new();
    for order in 0..orders {
        let row = whole.row(&format!("/v1/orders/o-{order}")).await;
        statuses.push(row["status"].as_str().unwrap_or("missing").to_owned());
    }
    statuses
}

/// Kills a service repeatedly while orders are placed and some are paid, and asserts that every order reaches its end.
async fn survives(kill: impl AsyncFn(&mut Whole)) {
    const ORDERS: usize = 60;
    let mut whole = Whole::new(2).await;
    whole.register("cd", 70).await;
    whole.register("lp", 30).await;
    for order in 0..ORDERS {
        let id = format!("o-{order}");
        whole.place(&id, &[("cd", 1), ("lp", 1)]).await;
        if order % 3 == 0 && order >= 6 {
            // The order may not be confirmed yet.
            whole.pay(&format!("o-{}", order - 6), 1000).await;
        }
        if order % 10 == 5 {
            kill(&mut whole).await;
        }
    }
    let ended = eventually("every order reaches its end", async || {
        let statuses = statuses(&whole, ORDERS).await;
        statuses.iter().all(|status| ["rejected", "paid", "expired"].contains(&status.as_str())).then_some(statuses)
    })
    .await;
    let paid = ended.iter().filter(|status| *status == "paid").count();
    let fields =
        |stock: usize| json!({ "available": stock - paid, "stock": stock - paid, "reserved": 0, "sold": paid });
    whole.comes_to("/v1/products/cd", fields(70)).await;
    whole.comes_to("/v1/products/lp", fields(30)).await;
    let config = projector::Config::from_env(&whole.shop.env([])).unwrap();
    let report = projector::audit::audit(&config, None).await.unwrap();
    assert_eq!(report.differences, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_reserved_nor_is_released_twice_though_the_reactor_dies_again_and_again() {
    survives(async |whole: &mut Whole| {
        whole.reactor.take().unwrap().crash().await;
        whole.reactor = Some(whole.shop.reactor(whole.command_api.as_ref().unwrap(), 2).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_reserved_nor_is_released_twice_though_command_api_dies_again_and_again() {
    survives(async |whole: &mut Whole| {
        whole.restart_command_api().await;
    })
    .await;
}

#[tokio::test]
async fn what_can_never_be_done_is_parked_alone_and_given_up_by_an_operator() {
    let shop = Shop::with_views(1).await;
    append_broken(&shop).await;
    let whole = Whole::of(shop, 600).await;
    whole.register("cd", 5).await;
    whole.place("stuck", &[("broken", 1), ("cd", 1)]).await;
    whole.place("fine", &[("cd", 1)]).await;
    whole.comes_to("/v1/orders/fine", json!({ "status": "confirmed" })).await;
    let admin = whole.reactor.as_ref().unwrap().admin_client();
    let listed = eventually("the reaction is parked", async || {
        let listed = admin.get("/parked").await.json()["parked"].take();
        (listed != json!([])).then_some(listed)
    })
    .await;
    assert_eq!((&listed[0]["view"], &listed[0]["aggregate"]), (&json!("reactor"), &json!("order/stuck")));
    assert!(listed[0]["reason"].as_str().unwrap().contains("quarantine"), "{listed}");
    assert_eq!(admin.post("/parked/reactor/order/stuck/retry", json!({})).await.status, 409);
    assert_eq!(admin.post("/parked/reactor/order/fine/retry", json!({})).await.status, 404);
    // The other reactions to the same order proceed: the other line's units are released.
    whole.comes_to("/v1/products/cd", json!({ "reserved": 2 })).await;
    whole.commands.post("/v1/orders/stuck/cancel", json!({})).await.accepted(&["order.cancelled.v2"]);
    whole.comes_to("/v1/products/cd", json!({ "reserved": 1 })).await;
    assert_eq!(admin.post("/parked/reactor/order/stuck/discard", json!({})).await.status, 204);
    let again = || admin.post("/parked/reactor/order/stuck/discard", json!({}));
    eventually("the reaction to the cancellation is discarded, too", async || {
        (again().await.status == 404).then_some(())
    })
    .await;
    whole.place("later", &[("cd", 1)]).await;
    whole.comes_to("/v1/orders/later", json!({ "status": "confirmed" })).await;
}

#[tokio::test]
async fn an_order_of_which_a_line_is_refused_for_too_long_ends_and_gives_back_the_others() {
    let shop = Shop::with_views(1).await;
    append_broken(&shop).await;
    let whole = Whole::of(shop, 600).await;
    whole.register("cd", 5).await;
    whole.place("stuck", &[("broken", 1), ("cd", 1)]).await;
    let admin = whole.reactor.as_ref().unwrap().admin_client();
    eventually("the reaction is parked", async || {
        (admin.get("/parked").await.json()["parked"] != json!([])).then_some(())
    })
    .await;
    whole.comes_to("/v1/products/cd", json!({ "reserved": 1 })).await;
    whole.comes_to("/v1/orders/stuck", json!({ "status": "placed" })).await;
    let commands = format!("http://{}", whole.command_api.as_ref().unwrap().internal_addr());
    let none = ("PROJECTOR_VIEWS", "none".to_owned());
    let url = whole.shop.postgres_url.as_str().into();
    projector::settings::set(&url, "CONFIRM_WITHIN_SECS", "1").await.unwrap();
    let env = [none, ("REACTOR_COMMAND_URLS", commands), ("CONFIRM_WITHIN_SECS", "1".to_owned())];
    let hasty = Service::projector(&whole.shop.env(env));
    hasty.wait_ready().await;
    let ended = json!({ "status": "rejected", "reason": "not_confirmed_in_time" });
    whole.comes_to("/v1/orders/stuck", ended).await;
    whole.comes_to("/v1/products/cd", json!({ "available": 5, "reserved": 0 })).await;
    // The release of the missing line stays parked, for an operator.
    eventually("the reaction to the placed order is no longer parked", async || {
        let placed = "SELECT count(*) FROM parked WHERE position('\"order.placed.'::bytea IN record) > 0";
        (whole.shop.sql(placed).await == Some(0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_was_taken_for_an_order_is_given_back_by_that_order_alone() {
    let whole = Whole::new(600).await;
    whole.register("last", 1).await;
    let of = |order: &str| json!({ "order": order });
    let some = |order: &str, quantity: u32| json!({ "order": order, "quantity": quantity });
    whole.place("first", &[("last", 1)]).await;
    whole.comes_to("/v1/orders/first", json!({ "status": "confirmed" })).await;
    // A client tries to free the unit so that another order gets it, too.
    whole.commands.post("/v1/products/last/release", of("first")).await.rejected("held_by_order");
    whole.place("second", &[("last", 1)]).await;
    whole.comes_to("/v1/orders/second", json!({ "status": "rejected", "reason": "out_of_stock" })).await;
    whole.pay("first", 500).await.accepted(&["order.paid.v2"]);
    whole.comes_to("/v1/products/last", json!({ "stock": 0, "reserved": 0, "sold": 1 })).await;
    // The order has been served: an equal reservation is a repeat without effect, one of another quantity is rejected.
    whole.commands.post("/v1/products/last/reserve", some("first", 1)).await.accepted(&[]);
    whole.commands.post("/v1/products/last/reserve", some("first", 5)).await.rejected("already_reserved");
    whole.commands.post("/v1/products/last/release", of("first")).await.rejected("not_reserved");

    // A client reserves units under the name of an order, before the order is placed and after.
    whole.register("cd", 3).await;
    whole.commands.post("/v1/products/cd/reserve", some("third", 1)).await.accepted(&["product.reserved.v2"]);
    whole.place("third", &[("cd", 2)]).await;
    whole.comes_to("/v1/orders/third", json!({ "status": "confirmed" })).await;
    whole.comes_to("/v1/products/cd", json!({ "available": 0, "reserved": 3 })).await;
    whole.commands.post("/v1/products/cd/release", of("third")).await.accepted(&["product.released.v2"]);
    whole.commands.post("/v1/products/cd/release", of("third")).await.rejected("held_by_order");
    whole.pay("third", 1000).await.accepted(&["order.paid.v2"]);
    whole.comes_to("/v1/products/cd", json!({ "available": 1, "reserved": 0, "sold": 2 })).await;
    let admin = whole.reactor.as_ref().unwrap().admin_client();
    assert_eq!(admin.get("/parked").await.json()["parked"], json!([]), "a client's reservation stopped a commit");
}

#[tokio::test]
async fn what_a_client_holds_for_a_while_is_free_at_its_end_and_shown_so_soon() {
    let whole = Whole::new(600).await;
    whole.register("cd", 2).await;
    let hold = |name: &str, secs: u32| json!({ "order": name, "quantity": 1, "hold_secs": secs });
    let reserve = async |data| whole.commands.post("/v1/products/cd/reserve", data).await;
    reserve(hold("long", 600)).await.accepted(&["product.reserved.v2"]);
    let started = std::time::Instant::now();
    let token = reserve(hold("short", 1)).await.accepted(&["product.reserved.v2"]).token();
    let fresh = [("consistency-token", &*token), ("prefer", "wait=10")];
    let shown = whole.queries.get_with("/v1/products/cd", &fresh).await.json();
    assert!(shown["version"].as_u64() >= Some(3), "{shown}");
    // No command triggers this: the product's own deadline does.
    whole.comes_to("/v1/products/cd", json!({ "available": 1, "reserved": 1 })).await;
    // The bound allows for a busy machine.
    assert!(started.elapsed().as_secs() < 1 + 20, "{:?}", started.elapsed());
    whole.commands.post("/v1/products/cd/release", json!({ "order": "short" })).await.rejected("not_reserved");
    let one = "SELECT count(*) FROM deadlines WHERE kind = 'lapse-holds' AND aggregate = 'product/cd'";
    eventually("the product has one deadline for all its holds", async || {
        (whole.shop.sql(one).await == Some(1)).then_some(())
    })
    .await;

    // Without a reactor, the domain rules free the units all the same.
    let Whole { commands, reactor, .. } = whole;
    reactor.unwrap().stop().await;
    let reserve = async |data| commands.post("/v1/products/cd/reserve", data).await;
    reserve(hold("short", 1)).await.accepted(&["product.reserved.v2"]);
    let taken = eventually("the unit is free", async || {
        let answer = reserve(hold("next", 600)).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    taken.accepted(&["product.holds-lapsed.v1", "product.reserved.v2"]);
    for (secs, expected) in [(0, 400), (86_401, 400), (86_400, 422)] {
        assert_eq!(reserve(hold("more", secs)).await.status, expected, "{secs}");
    }
}

#[tokio::test]
async fn a_payment_for_units_that_are_gone_is_parked_and_kept_when_they_are_back() {
    let whole = Whole::new(600).await;
    whole.register("cd", 5).await;
    whole.place("o", &[("cd", 1)]).await;
    whole.comes_to("/v1/orders/o", json!({ "status": "confirmed" })).await;
    // No client can do that, so this simulates a fault of the reactor.
    let command_api = whole.command_api.as_ref().unwrap();
    command_api.caused("products", "cd", "release", json!({ "order": "o" })).await;
    whole.pay("o", 500).await.accepted(&["order.paid.v2"]);
    let admin = whole.reactor.as_ref().unwrap().admin_client();
    let reason = eventually("the reaction to the payment is parked", async || {
        let parked = admin.get("/parked").await.json()["parked"].take();
        parked.get(0).filter(|one| one["aggregate"] == "order/o").map(|one| one["reason"].to_string())
    })
    .await;
    assert!(reason.contains("not_reserved"), "{reason}");
    assert_eq!(admin.post("/parked/reactor/order/o/retry", json!({})).await.status, 409);
    let again = json!({ "order": "o", "quantity": 1 });
    command_api.caused("products", "cd", "reserve", again).await;
    assert_eq!(admin.post("/parked/reactor/order/o/retry", json!({})).await.status, 204);
    whole.comes_to("/v1/products/cd", json!({ "stock": 4, "reserved": 0, "sold": 1 })).await;
    assert_eq!(admin.get("/parked").await.json()["parked"], json!([]));
}

#[tokio::test]
async fn a_client_that_uses_the_reactors_key_first_keeps_it_from_nothing() {
    let shop = Shop::with_views(1).await;
    let command_api = shop.command_api().await;
    let services = [shop.projector().await, shop.query_api().await];
    let (commands, queries) = (command_api.client(), services[1].client());
    let mut whole =
        Whole { shop, commands, queries, command_api: Some(command_api), reactor: None, _services: services };
    whole.register("cd", 5).await;
    let token = whole.place("o", &[("cd", 1)]).await.token();
    let fresh = [("consistency-token", &*token), ("prefer", "wait=10")];
    let history = whole.queries.get_with("/v1/orders/o/history?limit=1", &fresh).await.json();
    let at = parse_rfc3339(history[0]["time"].as_str().unwrap()).unwrap();
    let key = IdempotencyKey::from_dedup_key(at, "reserve o").to_string();
    let other = json!({ "order": "other", "quantity": 2 });
    let used = whole.commands.post_with("/v1/products/cd/reserve", &[("idempotency-key", &key)], other).await;
    used.accepted(&["product.reserved.v2"]);
    whole.reactor = Some(whole.shop.reactor(whole.command_api.as_ref().unwrap(), 600).await);
    whole.comes_to("/v1/orders/o", json!({ "status": "confirmed" })).await;
    whole.comes_to("/v1/products/cd", json!({ "reserved": 3 })).await;
}

#[tokio::test]
async fn a_deadline_that_can_have_no_effect_is_listed_fired_again_and_given_up_by_an_operator() {
    let whole = Whole::new(600).await;
    let broken =
        "INSERT INTO deadlines (kind, aggregate, due_at, cause) VALUES ('expire-order', 'order/a b', now(), '')";
    whole.shop.sql(broken).await;
    let admin = whole.reactor.as_ref().unwrap().admin_client();
    let listed = async || {
        let parked = admin.get("/parked").await.json()["parked"].take();
        parked
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["view"] == "deadlines" && one["aggregate"] == "order/a b")
            .then_some(())
    };
    eventually("the deadline is listed", listed).await;
    let comes = "SELECT count(*) FROM deadlines WHERE leased_until BETWEEN now() AND now() + interval '70 s'";
    assert_eq!(whole.shop.sql(comes).await, Some(1), "the deadline is not retried by itself");
    assert_eq!(admin.post("/parked/deadlines/order/a%20b/retry", json!({})).await.status, 204);
    eventually("the deadline fails again", listed).await;
    assert_eq!(admin.post("/parked/deadlines/order/a%20b/discard", json!({})).await.status, 204);
    assert_eq!(admin.post("/parked/deadlines/order/a%20b/retry", json!({})).await.status, 404);
    assert_eq!(whole.shop.sql("SELECT count(*) FROM deadlines").await, Some(0));
}

/// Appends the first records of partition 0: a product has an event that no product can have.
async fn append_broken(shop: &Shop) {
    let nonce = 7;
    append(shop, 0, "", &Record::Claim(Claim { nonce, url: "http://127.0.0.1:1".into(), partitions: None })).await;
    let commit = Commit {
        epoch: Epoch { claim: 0, nonce },
        seq: 1,
        command_id: "k".into(),
        at_ms: 1,
        aggregate: "product/broken".into(),
        version: 1,
        events: vec![WireEvent::newest(&domain::Event::Order(domain::order::Event::Confirmed))],
        fingerprint: 0,
        cause: None,
        trace: None,
        origin: None,
    };
    append(shop, 0, "product/broken", &Record::Commit(commit)).await;
}

#[tokio::test]
async fn a_deadline_that_somebody_leased_and_did_not_fire_is_fired_by_another_when_the_lease_is_over() {
    let whole = Whole::new(3).await;
    whole.register("cd", 5).await;
    whole.place("o", &[("cd", 1)]).await;
    // Simulates a reactor that leased the deadline and died.
    let leased = "UPDATE deadlines SET leased_until = now() + interval '6 s' WHERE kind = 'expire-order'";
    eventually("the deadline is set", async || {
        whole.shop.sql(leased).await;
        (whole.shop.sql("SELECT count(*) FROM deadlines WHERE leased_until > now()").await == Some(1)).then_some(())
    })
    .await;
    let due = "SELECT count(*) FROM deadlines WHERE due_at < now()";
    eventually("the deadline is due", async || (whole.shop.sql(due).await == Some(1)).then_some(())).await;
    assert_eq!(whole.row("/v1/orders/o").await["status"], "confirmed");
    let token = whole.comes_to("/v1/orders/o", json!({ "status": "expired" })).await;
    whole.comes_to("/v1/products/cd", json!({ "available": 5, "reserved": 0 })).await;
    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    let history = whole.queries.get_with("/v1/orders/o/history", &fresh).await.json();
    let expired = history.as_array().unwrap().iter().filter(|event| event["type"] == "order.expired.v1");
    assert_eq!(expired.count(), 1);
}

#[tokio::test]
async fn two_reactors_share_the_deadlines_and_each_has_one_effect_though_the_clock_jumps() {
    let whole = Whole::new(600).await;
    let second = whole.shop.reactor(whole.command_api.as_ref().unwrap(), 600).await;
    whole.register("cd", 100).await;
    for order in 0..40 {
        whole.place(&format!("o-{order}"), &[("cd", 1)]).await;
    }
    let set = async || (whole.shop.sql("SELECT count(*) FROM deadlines").await == Some(40)).then_some(());
    eventually("each order has its deadline", set).await;
    // Simulates that ten minutes pass by the clock of Postgres.
    whole.shop.sql("UPDATE deadlines SET due_at = due_at - interval '10 min'").await;
    whole.comes_to("/v1/products/cd", json!({ "available": 100, "reserved": 0 })).await;
    let expired = "SELECT count(*) FROM journal WHERE type = 'order.expired.v1'";
    eventually("each order has expired", async || (whole.shop.sql(expired).await >= Some(40)).then_some(())).await;
    assert_eq!(whole.shop.sql(expired).await, Some(40));
    let left = async || (whole.shop.sql("SELECT count(*) FROM deadlines").await == Some(0)).then_some(());
    eventually("no deadline is left", left).await;
    drop(second);
}
