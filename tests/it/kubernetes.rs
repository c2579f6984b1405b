//! The manifests on a control plane of Kubernetes: its API server, controllers and scheduler, with simulated nodes on
//! which every pod becomes ready. No container runs, and no operator acts on a custom resource. The commands for
//! operators are those of the handbook, as it writes them.

mod control_plane;
mod handbook;

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use control_plane::ControlPlane;
use handbook::Handbook;

use crate::fixture::eventually;

const SCHEMAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/schemas/");
/// The last one stays for what is tested after all were applied.
const OVERLAYS: [&str; 3] = ["development", "managed", "production"];
/// One node in each zone, the hardest case for a rule of spread.
const NODES: [&str; 3] = ["a", "b", "c"];
const WORKLOADS: [&str; 4] =
    ["statefulset/command-api", "deployment/query-api", "deployment/projector", "deployment/edge"];
/// Time for a rollout or a drain. The pauses between instances take most of it.
const WITHIN: &str = "--timeout=240s";
/// Time after which a drain counts as one that never ends.
const BLOCKED: &str = "--timeout=20s";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: builds Kubernetes"]
async fn a_cluster_takes_the_manifests_and_rolls_out_scales_and_drains() {
    let handbook = Handbook::read();
    let cluster = ControlPlane::start().await;
    for node in NODES {
        cluster.create(&simulated_node(node)).await;
    }
    cluster.kubectl(&["apply", "--server-side", "--filename", SCHEMAS]).await;
    cluster.kubectl(&["wait", "--for=condition=established", "crd", "--all", WITHIN]).await;
    for overlay in OVERLAYS {
        takes(&cluster, &handbook, overlay).await;
        rolls_out(&cluster).await;
    }
    refuses_what_it_must(&cluster).await;
    scales(&cluster, &handbook).await;
    keeps_the_budget_during_an_upgrade(&cluster, &handbook).await;
    drains(&cluster, &handbook).await;
}

/// Returns a node in a zone of its own.
fn simulated_node(name: &str) -> Value {
    let room = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
    let labels = json!({ "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": name });
    let metadata = json!({ "name": name, "labels": labels, "annotations": { "kwok.x-k8s.io/node": "fake" } });
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": { "allocatable": room, "capacity": room } })
}

/// Applies an overlay in the place of the previous one. The API server refuses unknown fields, what rules of the
/// definitions forbid, and by the namespace's label pods that could leave their container.
async fn takes(cluster: &ControlPlane, handbook: &Handbook, overlay: &str) {
    // A Job cannot be changed.
    cluster.kubectl(&["delete", "namespace", "stampede", "--ignore-not-found", WITHIN]).await;
    let install = handbook.install.replace("overlays/production", &format!("overlays/{overlay}"));
    let told = cluster.script(&install).await;
    assert!(!told.contains("Warning"), "{told}");
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

async fn scales(cluster: &ControlPlane, handbook: &Handbook) {
    cluster.script(&handbook.scale).await;
    for workload in WORKLOADS.into_iter().filter(|workload| !handbook.scale.contains(workload)) {
        cluster.kubectl(&["scale", workload, "--replicas=3"]).await;
    }
    cluster.script(&handbook.restart).await;
    rolls_out(cluster).await;
    // Applying the manifests again does not undo it.
    cluster.script(&handbook.install).await;
    for workload in WORKLOADS {
        let replicas = cluster.kubectl(&["get", workload, "--output=jsonpath={.spec.replicas}"]).await;
        assert_eq!(replicas, "3", "{workload}");
    }
}

/// Upgrades everything to another release, one service after the other, and checks that never more than one of three
/// instances is missing.
async fn keeps_the_budget_during_an_upgrade(cluster: &ControlPlane, handbook: &Handbook) {
    let overlay = cluster.checkout().join("deploy/kubernetes/overlays/production/kustomization.yaml");
    let tagged = fs::read_to_string(&overlay).unwrap();
    assert!(tagged.contains("newTag: 0.1.0"), "the overlay has a tag");
    // A release may change anything, so each object gets a label.
    let next = format!("{}labels:\n  - pairs: {{ release: next }}\n", tagged.replace("newTag: 0.1.0", "newTag: next"));
    fs::write(&overlay, next).unwrap();
    tokio::select! {
        _ = cluster.script(&handbook.upgrade) => {}
        () = keeps_the_budget(cluster) => {}
    }
    // It fails if something is left to be applied.
    cluster.script("kubectl diff --server-side --kustomize deploy/kubernetes/overlays/production").await;
    for workload in WORKLOADS {
        let now: Value = serde_json::from_str(&cluster.kubectl(&["get", workload, "--output=json"]).await).unwrap();
        let image = &now["spec"]["template"]["spec"]["containers"][0]["image"];
        assert!(image.as_str().unwrap().ends_with(":next"), "{workload}: {image}");
        for count in ["replicas", "updatedReplicas", "availableReplicas"] {
            assert_eq!(now["status"][count], 3, "{workload}: {count}");
        }
    }
}

/// Checks for ever that no more than one of three instances of a service is missing.
async fn keeps_the_budget(cluster: &ControlPlane) {
    loop {
        let all = cluster.kubectl(&[&["get", "--output=json"], &WORKLOADS[..]].concat()).await;
        let all: Value = serde_json::from_str(&all).unwrap();
        for workload in all["items"].as_array().unwrap() {
            let (name, status) = (&workload["metadata"]["name"], &workload["status"]);
            assert!(status["readyReplicas"].as_u64() >= Some(2), "{name}: {status}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Drains a node after the other, and checks that every instance finds another place; then, that a drain which the
/// budgets forbid is seen to be stuck.
async fn drains(cluster: &ControlPlane, handbook: &Handbook) {
    for node in NODES {
        cluster.script(&handbook.drain.replace("NODE", node)).await;
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
