//! A stack that is watched: Prometheus asks every instance, each query of the dashboards has an answer, and an alert begins
//! and ends with its fault.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::fixture::{Client, eventually};
use crate::stack::Stack;

const ONE_OF_EACH: [&str; 7] = ["--observe", "--command-apis", "1", "--query-apis", "1", "--projectors", "1"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs Prometheus and Alertmanager"]
async fn an_alert_begins_and_ends_with_its_fault() {
    let stack = Stack::up_with(&ONE_OF_EACH).await;
    let client = async |name: &str| Client::new(&format!("http://127.0.0.1:{}", stack.port(name, "http").await));
    let (prometheus, alertmanager) = (client("prometheus").await, client("alertmanager").await);

    sees(&prometheus, &["command-api-1", "projector-1", "query-api-1"]).await;
    stack.tell(&["scale", "query-api=2"]).await;
    sees(&prometheus, &["command-api-1", "projector-1", "query-api-1", "query-api-2"]).await;
    stack.tell(&["scale", "query-api=1"]).await;
    sees(&prometheus, &["command-api-1", "projector-1", "query-api-1"]).await;
    every_rule_is_evaluated(&prometheus).await;
    sell_something(&stack.client()).await;
    every_query_of_the_dashboards_has_an_answer(&prometheus).await;

    eventually("Alertmanager hears of Prometheus", async || is_told(&alertmanager, "Watchdog").await.then_some(()))
        .await;
    assert!(!is_told(&alertmanager, "TierDown").await);
    stack.tell(&["stop", "projector-1"]).await;
    eventually("the alert begins", async || is_told(&alertmanager, "TierDown").await.then_some(())).await;
    stack.tell(&["start", "projector-1"]).await;
    eventually("the alert ends", async || (!is_told(&alertmanager, "TierDown").await).then_some(())).await;
}

/// Waits until Prometheus has asked exactly these instances, with success.
async fn sees(prometheus: &Client, instances: &[&str]) {
    let instances: BTreeSet<_> = instances.iter().map(|name| (*name).to_owned()).collect();
    eventually("Prometheus sees all instances", async || {
        let answer = prometheus.get("/api/v1/targets?state=active").await.json();
        let targets = answer["data"]["activeTargets"].as_array()?;
        let up = targets.iter().filter(|target| target["health"] == "up");
        let up: BTreeSet<_> =
            up.filter_map(|target| target["labels"]["instance"].as_str().map(str::to_owned)).collect();
        (up == instances && targets.len() == instances.len()).then_some(())
    })
    .await;
}

async fn every_rule_is_evaluated(prometheus: &Client) {
    eventually("every rule is evaluated", async || {
        let answer = prometheus.get("/api/v1/rules").await.json();
        let groups = answer["data"]["groups"].as_array()?;
        let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array()).flatten().collect();
        let failed: Vec<_> = rules.iter().filter(|rule| rule["health"] == "err").collect();
        assert!(failed.is_empty(), "{failed:#?}");
        (rules.len() > 50 && rules.iter().all(|rule| rule["health"] == "ok")).then_some(())
    })
    .await;
}

/// Sells a unit and reads the order until it is confirmed, so that every part has something to count.
async fn sell_something(edge: &Client) {
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 100 });
    edge.post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
    let placed = json!({ "customer": "ada", "lines": [{ "product": "cd", "quantity": 1, "amount_cents": 1 }] });
    let placed = edge.post("/v1/orders/order-1/place", placed).await.accepted(&["order.placed.v1"]);
    edge.get_with("/v1/orders/order-1", &[("consistency-token", &placed.token())]).await;
    eventually("the order is confirmed", async || {
        (edge.get("/v1/orders/order-1").await.json()["data"]["status"] == "confirmed").then_some(())
    })
    .await;
}

/// Asks Prometheus each query of `deploy/monitoring/dashboards`. The answer may be empty if the panel's description says
/// that it is on a healthy stack.
async fn every_query_of_the_dashboards_has_an_answer(prometheus: &Client) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring/dashboards");
    let mut asked = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let dashboard: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let may_be_empty =
                panel["description"].as_str().unwrap_or_default().starts_with("Empty on a healthy stack: ");
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = target["expr"].as_str().unwrap();
                let path = format!("/api/v1/query?query={}", escaped(query));
                let what = format!("{}, {}: {query} has an answer", dashboard["title"], panel["title"]);
                eventually(&what, async || {
                    let answer = prometheus.get(&path).await.json();
                    assert_eq!(answer["status"], "success", "{query}: {answer}");
                    let is_empty = answer["data"]["result"].as_array()?.is_empty();
                    (may_be_empty || !is_empty).then_some(())
                })
                .await;
                asked += 1;
            }
        }
    }
    assert!(asked > 50, "the dashboards have {asked} queries");
}

/// Escapes a query for a URL.
fn escaped(query: &str) -> String {
    let byte = |byte: u8| match byte {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'_' | b':' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    query.bytes().map(byte).collect()
}

/// Returns whether Alertmanager has an alert of this name that has not ended.
async fn is_told(alertmanager: &Client, name: &str) -> bool {
    let alerts = alertmanager.get("/api/v2/alerts?active=true").await.json();
    alerts.as_array().unwrap().iter().any(|alert| alert["labels"]["alertname"] == name)
}
