//! The manifests on a control plane of Kubernetes: its API server, controllers and scheduler, with simulated nodes on
//! which every pod becomes ready. No container runs, and no operator acts on a custom resource.

mod control_plane;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use control_plane::ControlPlane;

use crate::fixture::eventually;

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes");
const OVERLAYS: [&str; 3] = ["development", "managed", "production"];
/// One node in each zone, the hardest case for a rule of spread.
const NODES: [&str; 3] = ["a", "b", "c"];
const WORKLOADS: [&str; 4] =
    ["statefulset/command-api", "deployment/query-api", "deployment/projector", "deployment/edge"];
/// Time for a rollout or a drain. The pauses between instances take most of it.
const WITHIN: &str = "--timeout=240s";
/// Time after which a drain counts as one that never ends.
const BLOCKED: &str = "--timeout=20s";
const ROLLOUT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: builds Kubernetes"]
async fn a_cluster_takes_the_manifests_and_rolls_out_scales_and_drains() {
    let cluster = ControlPlane::start().await;
    for node in NODES {
        cluster.create(&simulated_node(node)).await;
    }
    cluster.kubectl(&["apply", "--server-side", "--filename", &manifests("schemas/")]).await;
    cluster.kubectl(&["wait", "--for=condition=established", "crd", "--all", WITHIN]).await;
    for overlay in OVERLAYS {
        takes(&cluster, overlay).await;
        rolls_out(&cluster).await;
    }
    refuses_what_it_must(&cluster).await;
    scales(&cluster).await;
    keeps_the_budget_during_an_upgrade(&cluster).await;
    drains(&cluster).await;
}

fn manifests(path: &str) -> String {
    Path::new(MANIFESTS).join(path).to_string_lossy().into_owned()
}

/// Returns a node in a zone of its own.
fn simulated_node(name: &str) -> Value {
    let room = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
    let labels = json!({ "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": name });
    let metadata = json!({ "name": name, "labels": labels, "annotations": { "kwok.x-k8s.io/node": "fake" } });
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": { "allocatable": room, "capacity": room } })
}

/// Applies an overlay in the place of the previous one. The API server refuses unknown fields, and what rules of the
/// definitions forbid.
async fn takes(cluster: &ControlPlane, overlay: &str) {
    // A Job cannot be changed.
    cluster.kubectl(&["delete", "namespace", "stampede", "--ignore-not-found", WITHIN]).await;
    cluster.kubectl(&["apply", "--server-side", "--filename", &manifests("base/namespace.yaml")]).await;
    let secrets = cluster.write("secrets.yaml", &cluster.secrets(&manifests("secrets.sh")).await);
    cluster.kubectl(&["apply", "--server-side", "--validate=strict", "--filename", &secrets]).await;
    let folder = manifests(&format!("overlays/{overlay}"));
    cluster.kubectl(&["apply", "--server-side", "--validate=strict", "--kustomize", &folder]).await;
}

async fn rolls_out(cluster: &ControlPlane) {
    for workload in WORKLOADS {
        cluster.kubectl(&["rollout", "status", workload, WITHIN]).await;
    }
    cluster.kubectl(&["wait", "--for=condition=complete", "job", "--all", WITHIN]).await;
}

/// Checks that the API server enforces what the manifests rely on.
async fn refuses_what_it_must(cluster: &ControlPlane) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "privileged", "namespace": "stampede" },
        "spec": { "containers": [{ "name": "it", "image": "it", "securityContext": { "privileged": true } }] },
    });
    let refusal = cluster.refused(&pod).await;
    assert!(refusal.contains("violates PodSecurity \"restricted"), "{refusal}");
    let rule = json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": { "name": "it", "namespace": "stampede" },
        "spec": { "scaleTargetRef": { "name": "edge" }, "triggers": [{ "type": "cpu", "metadata": {} }], "maxReplicas": 3 },
    });
    let refusal = cluster.refused(&rule).await;
    assert!(refusal.contains("unknown field \"spec.maxReplicas\""), "{refusal}");
}

async fn scales(cluster: &ControlPlane) {
    for workload in WORKLOADS {
        cluster.kubectl(&["scale", workload, "--replicas=3"]).await;
    }
    rolls_out(cluster).await;
    // Applying the manifests again does not undo it.
    let folder = manifests("overlays/production");
    cluster.kubectl(&["apply", "--server-side", "--validate=strict", "--kustomize", &folder]).await;
    for workload in WORKLOADS {
        let replicas = cluster.kubectl(&["get", workload, "--output=jsonpath={.spec.replicas}"]).await;
        assert_eq!(replicas, "3", "{workload}");
    }
}

/// Upgrades one service after the other to another tag, as the handbook describes, and checks that never more than one
/// of three instances is missing.
async fn keeps_the_budget_during_an_upgrade(cluster: &ControlPlane) {
    let rendered = cluster.kubectl(&["kustomize", &manifests("overlays/production")]).await;
    assert!(rendered.contains(":0.1.0"), "the overlay has a tag");
    let next = cluster.write("next.yaml", &rendered.replace(":0.1.0", ":next"));
    let apply = ["apply", "--server-side", "--validate=strict", "--filename", &next, "--selector"];
    cluster.kubectl(&["delete", "job", "--all"]).await;
    cluster.kubectl(&[&apply[..], &["app.kubernetes.io/name=migrate"]].concat()).await;
    cluster.kubectl(&["wait", "--for=condition=complete", "job/migrate", WITHIN]).await;
    for workload in WORKLOADS {
        let name = workload.split_once('/').unwrap().1;
        cluster.kubectl(&[&apply[..], &[&format!("app.kubernetes.io/name={name}")]].concat()).await;
        tokio::time::timeout(ROLLOUT, rolled_out(cluster, workload)).await.expect("the rollout ends in time");
        let image = "--output=jsonpath={.spec.template.spec.containers[0].image}";
        let image = cluster.kubectl(&["get", workload, image]).await;
        assert!(image.ends_with(":next"), "{workload}: {image}");
    }
}

async fn rolled_out(cluster: &ControlPlane, workload: &str) {
    loop {
        let now: Value = serde_json::from_str(&cluster.kubectl(&["get", workload, "--output=json"]).await).unwrap();
        let count = |field: &str| now["status"][field].as_u64().unwrap_or(0);
        assert!(count("readyReplicas") >= 2, "{workload}: {}", now["status"]);
        let is_seen = now["status"]["observedGeneration"] == now["metadata"]["generation"];
        if is_seen && count("updatedReplicas") == 3 && count("replicas") == 3 && count("availableReplicas") == 3 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Drains a node after the other, and checks that every instance finds another place; then, that a drain which the
/// budgets forbid is seen to be stuck.
async fn drains(cluster: &ControlPlane) {
    for node in NODES {
        cluster.kubectl(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", WITHIN]).await;
        rolls_out(cluster).await;
        cluster.kubectl(&["uncordon", node]).await;
    }
    let none = json!({ "spec": { "maxUnavailable": 0 } }).to_string();
    cluster.kubectl(&["patch", "poddisruptionbudget", "query-api", "--type=merge", "--patch", &none]).await;
    // An instance that is not ready may be evicted regardless.
    eventually("all instances are ready, and none may be missing", async || {
        let counts = "--output=jsonpath={.status.currentHealthy} {.status.disruptionsAllowed}";
        (cluster.kubectl(&["get", "poddisruptionbudget", "query-api", counts]).await == "3 0").then_some(())
    })
    .await;
    let selected = "--pod-selector=app.kubernetes.io/name=query-api";
    let drain = ["drain", selected, "--ignore-daemonsets", BLOCKED];
    let stuck = cluster.fails(&[&drain[..], &NODES].concat()).await;
    assert!(stuck.contains("disruption budget"), "{stuck}");
}
