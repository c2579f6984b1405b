//! A stack that is watched: Prometheus asks every instance, and an alert begins and ends with its fault.

use std::collections::BTreeSet;

use serde_json::Value;

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

/// Returns whether Alertmanager has an alert of this name that has not ended.
async fn is_told(alertmanager: &Client, name: &str) -> bool {
    let alerts = alertmanager.get("/api/v2/alerts?active=true").await.json();
    alerts.as_array().unwrap().iter().any(|alert| alert["labels"]["alertname"] == name)
}
