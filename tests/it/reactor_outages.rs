//! Reactions to a partition that is unavailable for a long time: they wait until it is back, and delay no others.

use domain::AggregateType;
use serde_json::{Value, json};

use crate::fixture::{Answer, Client, Service, Shop, batch_line, eventually};

const PARTITIONS: u32 = 3;

/// Returns names of aggregates of this type in a partition.
fn names(kind: AggregateType, partition: u32) -> impl Iterator<Item = String> {
    let names = (0..).map(|n| format!("n-{n}"));
    names.filter(move |name| schemas::aggregate::partition(kind, name, PARTITIONS) == partition)
}

fn order(products: &[String]) -> Value {
    let lines: Vec<_> =
        products.iter().map(|name| json!({ "product": name, "quantity": 1, "amount_cents": 500 })).collect();
    json!({ "customer": "ann", "lines": lines })
}

async fn place(commands: &Client, name: &str, data: Value) -> Answer {
    commands.post(&format!("/v1/orders/{name}/place"), data).await.accepted(&["order.placed.v1"])
}

async fn is_confirmed(queries: &Client, name: &str) {
    eventually(&format!("{name} is confirmed"), async || {
        let row = queries.get(&format!("/v1/orders/{name}")).await.json();
        (row["data"]["status"] == "confirmed").then_some(())
    })
    .await;
}

async fn parked(reactor: &Service) -> Value {
    reactor.admin_client().get("/parked").await.json()["parked"].take()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_partition_that_is_away_is_not_parked_and_holds_up_no_other_whatever_its_number() {
    let shop = Shop::with_views(PARTITIONS).await;
    let command_api = shop.command_api_for("0-1").await;
    let _services = [shop.projector().await, shop.query_api().await];
    let (commands, queries) = (command_api.client(), _services[1].client());
    let reactor = shop.reactor(&command_api, 600).await;
    let here = names(AggregateType::Product, 0).next().unwrap();
    let product = json!({ "name": "A", "price_cents": 500, "stock": 9 });
    commands.post(&format!("/v1/products/{here}/register"), product).await.accepted(&["product.registered.v1"]);

    // More steps than may wait for one partition. Once the limit is reached, the partition of these orders waits as
    // well.
    let (orders, lines) = (170, 100);
    let away = order(&names(AggregateType::Product, 2).take(lines).collect::<Vec<_>>());
    let mut of_first = names(AggregateType::Order, 0);
    let batch: Vec<_> =
        of_first.by_ref().take(orders).map(|name| batch_line("orders", &name, "place", away.clone())).collect();
    let answers = commands.batch(&batch).await;
    assert!(answers.iter().all(|answer| answer["status"] == 200), "{answers:?}");
    let behind = of_first.next().unwrap();
    place(&commands, &behind, order(std::slice::from_ref(&here))).await;
    for name in names(AggregateType::Order, 1).take(3) {
        place(&commands, &name, order(std::slice::from_ref(&here))).await;
        is_confirmed(&queries, &name).await;
    }
    let rows = |status: &str| format!("SELECT count(*) FROM order_rows WHERE data ->> 'status' = '{status}'");
    assert_eq!(
        shop.sql(&rows("rejected")).await,
        Some(0),
        "an order was rejected although its products' partition is away"
    );
    assert_eq!(parked(&reactor).await, json!([]));

    let _owner = shop.command_api_for("2").await;
    is_confirmed(&queries, &behind).await;
    eventually("all orders are rejected because their products are unknown", async || {
        (shop.sql(&rows("rejected")).await == Some(orders as i64)).then_some(())
    })
    .await;
    assert_eq!(parked(&reactor).await, json!([]));
}
