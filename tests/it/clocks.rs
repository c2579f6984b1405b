//! Clock skew between an instance and the brokers, and between the log and the present.

use std::time::{SystemTime, UNIX_EPOCH};

use domain::TimeMs;
use domain::product::{Event, Registration};
use schemas::events::WireEvent;
use schemas::record::{Claim, Commit, Epoch, Record};
use serde_json::json;

use crate::fixture::{Shop, append, eventually, read_log};

const NONCE: u64 = 7;

fn now() -> TimeMs {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    TimeMs(u64::try_from(now.as_millis()).unwrap())
}

#[tokio::test]
async fn a_log_that_a_wrong_clock_has_brought_far_ahead_goes_on() {
    let shop = Shop::new(1).await;
    append(&shop, 0, "", &Record::Claim(Claim { nonce: NONCE, url: "http://127.0.0.1:1".into(), partitions: None }))
        .await;
    let registration = Registration { name: "A".into(), price_cents: 1, stock: 1, limit_per_order: None };
    let registered = domain::Event::Product(Event::Registered(registration));
    let commit = Commit {
        epoch: Epoch { claim: 0, nonce: NONCE },
        seq: 1,
        command_id: "registration".into(),
        at_ms: now().0 + 3_000_000,
        aggregate: "product/cd".into(),
        version: 1,
        events: vec![WireEvent::newest(&registered)],
        fingerprint: 0,
        cause: None,
        trace: None,
        origin: None,
    };
    append(&shop, 0, "product/cd", &Record::Commit(commit)).await;
    let service = shop.command_api().await;
    let restocked = json!({ "quantity": 1 });
    service.client().post("/v1/products/cd/restock", restocked).await.accepted(&["product.restocked.v1"]);
    assert_eq!(read_log(&shop).await.len(), 2);
}

#[tokio::test]
async fn an_instance_reports_the_skew_of_its_clock_from_the_brokers() {
    let shop = Shop::new(1).await;
    let service = shop.command_api().await;
    let skew = eventually("the instance has measured its clock skew", async || {
        let metrics = service.admin_client().get("/metrics").await.text;
        let line = metrics.lines().find(|line| line.starts_with("stampede_clock_skew_seconds"))?.to_owned();
        line.rsplit(' ').next()?.parse::<f64>().ok()
    });
    // Both run on this machine.
    let skew = skew.await;
    assert!(skew.abs() < 1.0, "{skew} s");
}
