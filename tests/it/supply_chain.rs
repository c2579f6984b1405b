//! What the programs of the images are made of.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tokio::process::Command;
use uuid::Uuid;

#[tokio::test]
#[ignore = "compiles the tool that makes them, in minutes"]
async fn a_bill_of_materials_lists_crates_of_the_lock_and_none_of_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = std::env::temp_dir().join(format!("stampede-sbom-{}", Uuid::new_v4().simple()));
    let made = Command::new(root.join("deploy/sbom")).arg(&folder).output().await.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap();
    for (service, crates) in [
        ("command-api", ["axum", "rdkafka", "rustls", "domain"]),
        ("projector", ["tokio-postgres", "rdkafka", "redis", "domain"]),
        ("query-api", ["axum", "tokio-postgres", "redis", "schemas"]),
        ("edge", ["anyhow", "rustix", "serde_json", "signal-hook"]),
    ] {
        let text = fs::read_to_string(folder.join(format!("{service}.cdx.json"))).unwrap();
        let bill: Value = serde_json::from_str(&text).unwrap();
        let of = |component: &Value, member: &str| component[member].as_str().unwrap().to_owned();
        let components: Vec<_> = bill["components"].as_array().unwrap().iter().collect();
        let has = |name: &str| components.iter().any(|component| of(component, "name") == name);
        assert!(crates.iter().all(|name| has(name)) && !has("proptest") && !has("stateright"), "{service}");
        for component in components {
            let (name, version) = (of(component, "name"), of(component, "version"));
            assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")), "{name} {version}");
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}
