//! A log that holds the first and the second version of an event: every reader makes the same of both.

use schemas::events::WireEvent;
use schemas::record::{Claim, Commit, Epoch, Record};
use serde_json::json;

use crate::fixture::{SERVICE_TOKEN, Service, Shop, append_all, eventually};

const NONCE: u64 = 7;

/// Records as an older build wrote them.
struct OldLog(Vec<(String, Record<'static>)>);

impl OldLog {
    fn begin() -> Self {
        Self(vec![(String::new(), Record::Claim(Claim { nonce: NONCE, url: "http://127.0.0.1:1".into() }))])
    }

    /// `version`: of the aggregate after the event.
    fn write(&mut self, aggregate: &'static str, version: u64, event: &str) {
        // The claim is at offset 0.
        let seq = self.0.len() as u64;
        let event: &'static str = event.to_owned().leak();
        let commit = Commit {
            epoch: Epoch { claim: 0, nonce: NONCE },
            seq,
            command_id: format!("old-{seq}").into(),
            at_ms: seq,
            aggregate: aggregate.into(),
            version,
            events: vec![serde_json::from_str::<WireEvent<'_>>(event).unwrap()],
            fingerprint: 0,
            cause: None,
            trace: None,
        };
        self.0.push((aggregate.to_owned(), Record::Commit(commit)));
    }
}

#[tokio::test]
async fn a_log_of_both_versions_means_the_same_to_the_rules_the_views_the_snapshots_and_the_audit() {
    let shop = Shop::with_views(1).await;
    let mut log = OldLog::begin();
    let registered = r#"{"type":"product.registered.v1","data":{"name":"A","price_cents":500,"stock":10}}"#;
    log.write("product/cd", 1, registered);
    for (version, order) in [(2, "sold"), (4, "open")] {
        let reserved = format!(r#"{{"type":"product.reserved.v1","data":{{"order":"{order}","quantity":2}}}}"#);
        log.write("product/cd", version, &reserved);
        if order == "sold" {
            let committed = r#"{"type":"product.committed.v1","data":{"order":"sold","quantity":2}}"#;
            log.write("product/cd", 3, committed);
        }
    }
    let placed = r#"{"type":"order.placed.v1","data":{"customer":"ann","lines":[{"product":"cd","quantity":2,"amount_cents":1000}],"ordered_at":"1997-01-01T00:00:00Z"}}"#;
    log.write("order/gone", 1, placed);
    let ended = r#"{"type":"order.cancelled.v1","data":{"customer":"ann","units":2,"amount_cents":1000,"ordered_at":"1997-01-01T00:00:00Z"}}"#;
    log.write("order/gone", 2, ended);
    // As long a history as a snapshot is made of.
    for version in 5..=300 {
        log.write("product/cd", version, r#"{"type":"product.repriced.v1","data":{"price_cents":700}}"#);
    }

    append_all(&shop, 0, &log.0).await;

    let services = [shop.command_api().await, shop.projector().await, shop.query_api().await];
    let queries = services[2].client();
    // The second version behind the first, of the same aggregate.
    let bearer = format!("Bearer {SERVICE_TOKEN}");
    let commit = json!({ "order": "open", "amount_cents": 900 });
    let internal = services[0].internal_client();
    let committed = internal.post_with("/v1/products/cd/commit", &[("authorization", &bearer)], commit).await;
    let token = committed.accepted(&["product.committed.v2"]).token();
    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    let row = async |path: &str| queries.get_with(path, &fresh).await.json()["data"].take();
    let product = row("/v1/products/cd").await;
    assert_eq!((&product["stock"], &product["reserved"], &product["sold"]), (&json!(6), &json!(0), &json!(4)));
    // The first version did not tell the amount.
    let best = row("/v1/views/best_sellers/cd").await;
    assert_eq!((&best["units"], &best["amount_cents"]), (&json!(4), &json!(900)));
    assert_eq!(row("/v1/orders/gone").await["status"], "cancelled");
    assert_eq!(row("/v1/customers/ann").await["orders"], 0);
    let config = projector::Config::from_env(&shop.env([])).unwrap();
    assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, []);

    eventually("a snapshot is kept", async || {
        let kept = shop.sql("SELECT count(*) FROM snapshots WHERE aggregate = 'product/cd'").await;
        (kept == Some(1)).then_some(())
    })
    .await;
    let [command_api, _projector, _query_api] = services;
    command_api.stop().await;
    let again: Service = shop.command_api().await;
    let internal = again.internal_client();
    // From the snapshot and what came after it: both orders got theirs, and get no more.
    for order in ["sold", "open"] {
        let data = json!({ "order": order, "quantity": 2 });
        again.client().post("/v1/products/cd/reserve", data).await.accepted(&[]);
        let data = json!({ "order": order });
        internal
            .post_with("/v1/products/cd/release", &[("authorization", &bearer)], data)
            .await
            .rejected("not_reserved");
    }
}
