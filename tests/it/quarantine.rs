//! An aggregate that the domain rules cannot handle affects no other aggregate.

use std::borrow::Cow;

use schemas::events::WireEvent;
use schemas::record::{Claim, Commit, Epoch, Record};
use serde_json::json;

use crate::fixture::{Shop, append};

/// Returns a shop whose log has an event of a product that no product can have.
async fn broken_shop() -> Shop {
    let shop = Shop::new(1).await;
    let nonce = 7;
    append(&shop, 0, "", &Record::Claim(Claim { nonce, url: "http://127.0.0.1:1".into(), partitions: None })).await;
    let nonsense = domain::Event::Order(domain::order::Event::Confirmed);
    let commit = Commit {
        epoch: Epoch { claim: 0, nonce },
        seq: 1,
        command_id: Cow::Borrowed("k"),
        at_ms: 1,
        aggregate: Cow::Borrowed("product/broken"),
        version: 1,
        events: vec![WireEvent::newest(&nonsense)],
        fingerprint: 0,
        cause: None,
        trace: None,
        origin: None,
    };
    append(&shop, 0, "product/broken", &Record::Commit(commit)).await;
    shop
}

#[tokio::test]
async fn an_aggregate_that_cannot_be_folded_is_refused_and_the_rest_is_served() {
    let shop = broken_shop().await;
    let service = shop.command_api().await;
    let client = service.client();
    let refused = client.post("/v1/products/broken/restock", json!({ "quantity": 1 })).await;
    assert_eq!((refused.status.as_u16(), refused.json()["type"].as_str()), (503, Some("/problems/quarantined")));
    assert!(refused.header("retry-after").is_some() && refused.header("idempotency-key").is_some(), "{refused:?}");
    let other = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    client.post("/v1/products/whole/register", other).await.accepted(&["product.registered.v1"]);

    let admin = service.admin_client();
    let listed = admin.get("/quarantine").await.json();
    assert_eq!(listed["quarantined"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["quarantined"][0]["aggregate"], "product/broken");
    assert_eq!(listed["quarantined"][0]["state_lost"], true);
    let metrics = admin.get("/metrics").await.text;
    assert!(metrics.contains("stampede_quarantined{partition=\"0\"} 1"), "{metrics}");
    assert_eq!(admin.post("/quarantine/product/broken/release", json!({})).await.status, 409);
    assert_eq!(admin.post("/quarantine/product/whole/release", json!({})).await.status, 404);
}
