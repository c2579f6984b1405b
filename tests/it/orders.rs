//! The life cycle of an order, as the views show each step.

use serde_json::{Value, json};

use crate::fixture::{Answer, Client, SERVICE_TOKEN, Service, Shop};

struct Orders {
    commands: Client,
    internal: Client,
    queries: Client,
    _services: [Service; 3],
}

impl Orders {
    async fn new() -> Self {
        let shop = Shop::with_views(2).await;
        let services = [shop.command_api().await, shop.projector().await, shop.query_api().await];
        let (commands, internal) = (services[0].client(), services[0].internal_client());
        Self { commands, internal, queries: services[2].client(), _services: services }
    }

    /// Places an order of two units for 900 cents and confirms both lines.
    async fn confirmed(&self, id: &str) -> Answer {
        let lines = json!([
            { "product": "a", "quantity": 1, "amount_cents": 500 },
            { "product": "b", "quantity": 1, "amount_cents": 400 },
        ]);
        self.send(id, "place", json!({ "customer": "ann", "lines": lines })).await.accepted(&["order.placed.v1"]);
        self.finish(id, "confirm-line", json!({ "product": "a" })).await.accepted(&["order.line-confirmed.v1"]);
        let last = self.finish(id, "confirm-line", json!({ "product": "b" })).await;
        last.accepted(&["order.line-confirmed.v1", "order.confirmed.v1"])
    }

    async fn send(&self, id: &str, command: &str, data: Value) -> Answer {
        self.commands.post(&format!("/v1/orders/{id}/{command}"), data).await
    }

    /// Sends an internal command, as the reactor does.
    async fn finish(&self, id: &str, command: &str, data: Value) -> Answer {
        let bearer = format!("Bearer {SERVICE_TOKEN}");
        self.internal.post_with(&format!("/v1/orders/{id}/{command}"), &[("authorization", &bearer)], data).await
    }

    /// Returns the order's status and the customer's number of orders and cents, once they include a command.
    async fn shown(&self, id: &str, command: &Answer) -> (Value, Value, Value) {
        let token = command.token();
        let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
        let order = self.queries.get_with(&format!("/v1/orders/{id}"), &fresh).await.json();
        let customer = self.queries.get_with("/v1/customers/ann", &fresh).await.json();
        let sum = |name: &str| customer["data"][name].clone();
        (order["data"]["status"].clone(), sum("orders"), sum("amount_cents"))
    }
}

#[tokio::test]
async fn an_order_is_paid_shipped_and_delivered_and_its_row_shows_its_progress() {
    let orders = Orders::new().await;
    let confirmed = orders.confirmed("o").await;
    assert_eq!(orders.shown("o", &confirmed).await, (json!("confirmed"), json!(1), json!(900)));
    let refused = orders.send("o", "ship", json!({})).await.rejected("not_paid");
    assert_eq!(refused.json()["state"], "confirmed");
    let pay = |payment: &str, cents: u32| json!({ "payment": payment, "amount_cents": cents });
    orders.send("o", "pay", pay("p-1", 899)).await.rejected("wrong_amount");
    let paid = orders.send("o", "pay", pay("p-1", 900)).await.accepted(&["order.paid.v2"]);
    assert_eq!(orders.shown("o", &paid).await, (json!("paid"), json!(1), json!(900)));
    orders.send("o", "pay", pay("p-1", 900)).await.accepted(&[]);
    orders.send("o", "pay", pay("p-2", 900)).await.rejected("already_paid");
    orders.finish("o", "expire", json!({})).await.rejected("already_paid");
    orders.send("o", "deliver", json!({})).await.rejected("not_shipped");
    orders.send("o", "ship", json!({ "carrier": "by bike" })).await.accepted(&["order.shipped.v1"]);
    orders.send("o", "cancel", json!({})).await.rejected("already_shipped");
    let delivered = orders.send("o", "deliver", json!({})).await.accepted(&["order.delivered.v1"]);
    assert_eq!(orders.shown("o", &delivered).await, (json!("delivered"), json!(1), json!(900)));
}

#[tokio::test]
async fn an_order_that_expires_is_taken_back_from_every_sum_and_is_paid_no_more() {
    let orders = Orders::new().await;
    orders.confirmed("o").await;
    // The public API has no command that expires an order.
    orders.send("o", "expire", json!({})).await.problem(404, "not-found", "");
    let expired = orders.finish("o", "expire", json!({})).await.accepted(&["order.expired.v1"]);
    assert_eq!(orders.shown("o", &expired).await, (json!("expired"), json!(0), json!(0)));
    let pay = json!({ "payment": "p", "amount_cents": 900 });
    orders.send("o", "pay", pay).await.rejected("expired");
}

#[tokio::test]
async fn a_rejection_names_the_state_of_the_aggregate() {
    let orders = Orders::new().await;
    let state = |answer: Answer, rejection: &str| answer.rejected(rejection).json()["state"].clone();
    let pay = |payment: &str| json!({ "payment": payment, "amount_cents": 900 });
    assert_eq!(state(orders.send("none", "cancel", json!({})).await, "not_placed"), "unplaced");
    orders.confirmed("o").await;
    orders.send("o", "pay", pay("p-1")).await.accepted(&["order.paid.v2"]);
    orders.send("o", "cancel", json!({})).await.accepted(&["order.cancelled.v2"]);
    assert_eq!(state(orders.send("o", "pay", pay("p-1")).await, "cancelled_after_payment"), "cancelled");
    assert_eq!(state(orders.send("o", "pay", pay("p-2")).await, "already_cancelled"), "cancelled");
    let lines = json!([{ "product": "a", "quantity": 1, "amount_cents": 900 }]);
    orders.send("r", "place", json!({ "customer": "ann", "lines": lines })).await.accepted(&["order.placed.v1"]);
    let events = ["order.line-rejected.v1", "order.rejected.v2"];
    orders.finish("r", "reject-line", json!({ "product": "a" })).await.accepted(&events);
    for command in ["cancel", "pay"] {
        let data = if command == "pay" { pay("p") } else { json!({}) };
        assert_eq!(state(orders.send("r", command, data).await, "already_rejected"), "rejected");
    }
    let claim = json!({ "customer": "ann", "quantity": 1, "order": "o" });
    let refused = orders.commands.post("/v1/sales/none/claim", claim).await;
    assert_eq!(state(refused, "sale_not_open"), "unscheduled");
    // A rejection for a wrong price names the product's price.
    let product = json!({ "name": "A", "price_cents": 500, "stock": 5 });
    orders.commands.post("/v1/products/a/register", product).await.accepted(&["product.registered.v1"]);
    let line = json!({ "aggregate": "products", "id": "a", "command": "reserve", "key": "k", "cause": "0-1-1",
        "data": { "order": "x", "quantity": 2, "amount_cents": 999 } });
    let bearer = format!("Bearer {SERVICE_TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/x-ndjson")];
    let answer = orders.internal.post_raw("/v1/commands", &headers, line.to_string()).await;
    let told = answer.json();
    assert_eq!((&told["rejection"], &told["price_cents"]), (&json!("wrong_price"), &json!(500)), "{told}");
    assert_eq!(told["state"], "on_sale");
    let public = json!({ "order": "x", "quantity": 2, "amount_cents": 1000 });
    orders.commands.post("/v1/products/a/reserve", public).await.problem(400, "invalid-request", "amount_cents");
}

#[tokio::test]
async fn what_is_wrong_with_a_payment_or_a_parcel_is_named() {
    let orders = Orders::new().await;
    for (command, data, field) in [
        ("pay", json!({ "amount_cents": 1 }), "payment"),
        ("pay", json!({ "payment": "a b", "amount_cents": 1 }), "payment"),
        ("pay", json!({ "payment": "p", "amount_cents": -1 }), "amount_cents"),
        ("ship", json!({ "carrier": "" }), "carrier"),
        ("deliver", json!({ "to": "me" }), "to"),
    ] {
        orders.send("o", command, data).await.problem(400, "invalid-request", field);
    }
}
