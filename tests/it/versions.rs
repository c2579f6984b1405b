//! A log with the first and the second version of an event: every reader interprets both alike.

use schemas::events::WireEvent;
use schemas::record::{Claim, Commit, Epoch, Record};
use serde_json::{Value, json};

use crate::fixture::{Client, SERVICE_TOKEN, Service, Shop, append_all, eventually};

const NONCE: u64 = 7;
/// The first version of the event, which lacks the source of the units of each line.
const PAID: &str = r#"{"payment":"p","amount_cents":1000,"held":[{"product":"cd","quantity":2}]}"#;

/// Records as an older build wrote them.
struct OldLog(Vec<(String, Record<'static>)>);

impl OldLog {
    fn begin() -> Self {
        Self(vec![(
            String::new(),
            Record::Claim(Claim { nonce: NONCE, url: "http://127.0.0.1:1".into(), partitions: None }),
        )])
    }

    /// Appends an event; `version` is that of the aggregate after it.
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
            origin: None,
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
    let placed = placed.replace("ann", "bob");
    log.write("order/kept", 1, &placed);
    log.write("order/kept", 2, r#"{"type":"order.line-confirmed.v1","data":{"product":"cd"}}"#);
    log.write("order/kept", 3, r#"{"type":"order.confirmed.v1","data":{}}"#);
    log.write("order/kept", 4, &format!(r#"{{"type":"order.paid.v1","data":{PAID}}}"#));
    // Long enough for a snapshot.
    for version in 5..=300 {
        log.write("product/cd", version, r#"{"type":"product.repriced.v1","data":{"price_cents":700}}"#);
    }

    append_all(&shop, 0, &log.0).await;

    let services = [shop.command_api().await, shop.projector().await, shop.query_api().await];
    let queries = services[2].client();
    // The second version follows the first one, on the same aggregate.
    let bearer = format!("Bearer {SERVICE_TOKEN}");
    let commit = json!({ "order": "open", "amount_cents": 900 });
    let internal = services[0].internal_client();
    let committed = internal.post_with("/v1/products/cd/commit", &[("authorization", &bearer)], commit).await;
    let token = committed.accepted(&["product.committed.v2"]).token();
    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    let row = async |path: &str| queries.get_with(path, &fresh).await.json()["data"].take();
    let product = row("/v1/products/cd").await;
    assert_eq!((&product["stock"], &product["reserved"], &product["sold"]), (&json!(6), &json!(0), &json!(4)));
    // The first version lacks the amount.
    let best = row("/v1/views/best_sellers/cd").await;
    assert_eq!((&best["units"], &best["amount_cents"]), (&json!(4), &json!(900)));
    assert_eq!(row("/v1/orders/gone").await["status"], "cancelled");
    the_past_is_as_it_was(&queries, &fresh).await;
    // The domain rules regard the order as paid.
    let pay = json!({ "payment": "other", "amount_cents": 1000 });
    services[0].client().post("/v1/orders/kept/pay", pay).await.rejected("already_paid");
    services[0].client().post("/v1/orders/kept/ship", json!({})).await.accepted(&["order.shipped.v1"]);
    assert_eq!(row("/v1/customers/ann").await["orders"], 0);
    let config = projector::Config::from_env(&shop.env([])).unwrap();
    assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, []);

    eventually("a snapshot is stored", async || {
        let kept = shop.sql("SELECT count(*) FROM state_snapshots WHERE aggregate = 'product/cd'").await;
        (kept == Some(1)).then_some(())
    })
    .await;
    let [command_api, _projector, _query_api] = services;
    command_api.stop().await;
    let again: Service = shop.command_api().await;
    let internal = again.internal_client();
    // The state comes from the snapshot and the later events: both orders have been served and get nothing more.
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

/// Checks that a history has the events as written, and that an earlier state is the fold of the events up to it, of
/// any version.
async fn the_past_is_as_it_was(queries: &Client, fresh: &[(&str, &str)]) {
    let get = async |path: &str| queries.get_with(path, fresh).await.json();
    let events = get("/v1/orders/kept/history").await;
    assert_eq!((&events[3]["type"], &events[3]["version"]), (&json!("order.paid.v1"), &json!(4)));
    assert_eq!(events[3]["data"], serde_json::from_str::<Value>(PAID).unwrap());
    for (path, version, member, value) in [
        ("orders/kept", 3, "status", json!("confirmed")),
        ("orders/kept", 4, "status", json!("paid")),
        ("orders/gone", 1, "status", json!("placed")),
        ("orders/gone", 2, "status", json!("cancelled")),
        ("products/cd", 2, "reserved", json!(2)),
        ("products/cd", 3, "sold", json!(2)),
        // This event is the test's own command, of the second version.
        ("products/cd", 301, "sold", json!(4)),
    ] {
        let then = get(&format!("/v1/{path}/as-of?version={version}")).await;
        assert_eq!((&then["version"], &then["data"][member]), (&json!(version), &value), "{path} at {version}");
    }
    let events = get("/v1/products/cd/history?limit=3").await;
    assert_eq!(events[2]["type"], "product.committed.v1");
    assert_eq!(events[2]["data"], json!({ "order": "sold", "quantity": 2 }));
}
