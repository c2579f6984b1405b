//! Several projectors: they share the partitions and the views, and hand them over without a gap or a duplicate.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::fixture::{Service, Shop, batch_line, eventually};

/// Orders of seven customers, in batches whose tokens name every partition, and the expected rows of the views.
pub(crate) struct Orders {
    command_api: Service,
    query_api: Service,
    expected: BTreeMap<String, u64>,
    token: String,
}

impl Orders {
    pub(crate) async fn new(shop: &Shop) -> Self {
        let (command_api, query_api) = (shop.command_api().await, shop.start_query_api().await);
        Self { command_api, query_api, expected: BTreeMap::new(), token: String::new() }
    }

    /// Places batches. After each one, a query with its token shows all of it.
    pub(crate) async fn place(&mut self, round: &str, batches: usize) {
        self.query_api.wait_ready().await;
        for batch in 0..batches {
            self.send(&format!("{round}-{batch}")).await;
            self.shown("c-0").await;
        }
    }

    /// Places a batch without waiting for the views.
    pub(crate) async fn send(&mut self, round: &str) {
        let lines: Vec<Value> = (0..50)
            .map(|n| {
                let customer = format!("c-{}", n % 7);
                *self.expected.entry(customer.clone()).or_default() += 1;
                let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 100 }]);
                batch_line(
                    "orders",
                    &format!("o-{round}-{n}"),
                    "place",
                    json!({ "customer": customer, "lines": lines }),
                )
            })
            .collect();
        let answers = self.command_api.client().batch(&lines).await;
        let tokens: Vec<_> = answers.iter().map(|answer| answer["token"].as_str().unwrap()).collect();
        self.token = tokens.join(",");
    }

    /// Waits for as long as a dead projector may keep its partitions.
    pub(crate) async fn come_to_be_shown(&self) {
        eventually("the views show the last batch", async || {
            let headers = [("consistency-token", self.token.as_str()), ("prefer", "wait=5")];
            let answer = self.query_api.client().get_with("/v1/customers/c-0", &headers).await;
            (answer.status == 200).then_some(())
        })
        .await;
        self.all_shown().await;
    }

    async fn shown(&self, customer: &str) {
        let headers = [("consistency-token", self.token.as_str()), ("prefer", "wait=10")];
        let answer = self.query_api.client().get_with(&format!("/v1/customers/{customer}"), &headers).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let (data, orders) = (&answer.json()["data"], self.expected[customer]);
        assert_eq!((&data["orders"], &data["amount_cents"]), (&json!(orders), &json!(orders * 100)), "{customer}");
    }

    pub(crate) async fn all_shown(&self) {
        for customer in self.expected.keys() {
            self.shown(customer).await;
        }
    }
}

/// Waits until `wanted` of the projectors are folding.
pub(crate) async fn active(wanted: usize, projectors: &[&Service]) {
    eventually("the expected number of projectors is folding", async || {
        let mut active = 0;
        for projector in projectors {
            let metrics = projector.admin_client().get("/metrics").await.text;
            active += usize::from(metrics.contains("\nstampede_projector_active 1"));
        }
        (active == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn partitions_move_between_projectors_and_every_view_stays_exact() {
    let shop = Shop::with_views(6).await;
    let mut orders = Orders::new(&shop).await;
    let first = shop.projector().await;
    orders.place("one", 3).await;
    let (second, third) = (shop.projector().await, shop.projector().await);
    orders.place("joining", 3).await;
    active(3, &[&first, &second, &third]).await;
    orders.place("three", 3).await;
    first.stop().await;
    orders.place("stopped", 3).await;
    second.crash().await;
    orders.send("orphaned").await;
    orders.come_to_be_shown().await;
    orders.place("crashed", 3).await;
    orders.all_shown().await;
    drop(third);
}

#[tokio::test]
async fn views_may_be_split_over_projectors_and_the_split_may_change() {
    let shop = Shop::with_views(3).await;
    let mut orders = Orders::new(&shop).await;
    let customers = shop.projector_of("customer,revenue,revenue_by_minute,best_sellers");
    let rest = shop.projector_of("product,order,sale,journal");
    active(2, &[&customers, &rest]).await;
    orders.place("split", 3).await;
    customers.stop().await;
    rest.stop().await;
    let whole = shop.projector().await;
    orders.place("whole", 3).await;
    orders.all_shown().await;
    // Another split while the first one is still folding: a redundant projector yields.
    let again = shop.projector_of("customer");
    orders.place("both", 3).await;
    whole.stop().await;
    orders.place("alone", 3).await;
    orders.all_shown().await;
    drop(again);
}

#[tokio::test]
async fn more_projectors_than_partitions_stand_by_ready() {
    let shop = Shop::with_views(1).await;
    let mut orders = Orders::new(&shop).await;
    let projectors = [shop.projector().await, shop.projector().await];
    orders.place("one", 1).await;
    active(1, &[&projectors[0], &projectors[1]]).await;
    let [first, second] = projectors;
    first.stop().await;
    orders.place("after", 1).await;
    orders.all_shown().await;
    drop(second);
}
