//! An aggregate, versions of an event and a view are added by a patch that touches `domain`, `schemas` and the
//! projector's views alone; everything else takes them as they come.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::process::Command;

use crate::fixture::{Client, Program, Shop, eventually, server};

const PATCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/adding/card.patch");
/// On a machine with two cores, beside other tests, at a low priority.
const BUILT_WITHIN: Duration = Duration::from_secs(1200);

/// A copy of the sources, without what was built. It goes when dropped.
struct Sources(PathBuf);

impl Sources {
    fn copy() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let copy = std::env::temp_dir().join(format!("stampede-adding-{}", std::process::id()));
        for name in ["domain", "schemas", "command-api", "projector", "query-api", "deploy", "tests"] {
            copy_folder(&root.join(name), &copy.join(name));
        }
        for name in ["Cargo.toml", "Cargo.lock"] {
            fs::copy(root.join(name), copy.join(name)).unwrap();
        }
        Self(copy)
    }

    async fn run(&self, program: &str, args: &[&str]) {
        let mut command = Command::new(program);
        // What is built for the tests is used again, but for what the patch changes.
        let built = Path::new(&server("TEST_BIN_DIR")).parent().unwrap().to_owned();
        command.args(args).current_dir(&self.0).kill_on_drop(true);
        command.env("CARGO_BUILD_BUILD_DIR", built).env("CARGO_TARGET_DIR", self.0.join("target"));
        let output = tokio::time::timeout(BUILT_WITHIN, command.output()).await.expect("it ends in time").unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn program(&self, name: &str) -> String {
        self.0.join("target/debug").join(name).display().to_string()
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if !entry.file_type().unwrap().is_dir() {
            fs::copy(path, copy).unwrap();
        } else if entry.file_name() != "target" {
            copy_folder(&path, &copy);
        }
    }
}

#[test]
fn the_patch_touches_the_rules_what_crosses_borders_and_the_views_alone() {
    let patch = fs::read_to_string(PATCH).unwrap();
    let files: Vec<_> = patch.lines().filter_map(|line| line.strip_prefix("+++ b/")).collect();
    assert!(files.len() > 10);
    let is_meant = |file: &&str| ["domain/", "schemas/", "projector/src/views/"].iter().any(|at| file.starts_with(at));
    assert!(files.iter().all(is_meant), "{files:?}");
}

#[tokio::test]
async fn an_aggregate_an_event_version_and_a_view_are_added_by_a_patch_and_make_the_round() {
    let sources = Sources::copy();
    sources.run("git", &["apply", PATCH]).await;
    let build = ["-n", "19", "cargo", "build", "--quiet", "-p", "command-api", "-p", "projector", "-p", "query-api"];
    sources.run("nice", &build).await;

    let shop = Shop::with_empty_database(2).await;
    let program = async |name: &str| Program::of(&sources.program(name), &shop).await;
    program("projector").await.run(&["migrate"]).await;
    let command_api = program("command-api").await.start().await;
    let _projector = program("projector").await.start().await;
    let query_api = program("query-api").await.start().await;
    let (commands, queries) = (command_api.client(), query_api.client());

    commands.post("/v1/cards/c-1/issue", json!({ "amount_cents": 500 })).await.accepted(&["card.issued.v1"]);
    let spend = json!({ "amount_cents": 200, "order": "o-1" });
    let spent = commands.post("/v1/cards/c-1/spend", spend).await.accepted(&["card.spent.v2"]);
    commands.post("/v1/cards/c-1/spend", json!({ "amount_cents": 301 })).await.rejected("too_little_left");
    let row = shown(&queries, "/v1/cards/c-1", &spent.token()).await;
    assert_eq!(row["data"], json!({ "issued_cents": 500, "left_cents": 300 }));
    let history = shown(&queries, "/v1/cards/c-1/history", &spent.token()).await;
    assert_eq!(history[1]["data"], json!({ "amount_cents": 200, "order": "o-1" }));
    let then = queries.get("/v1/cards/c-1/history?version=1").await.json();
    assert_eq!(then["data"]["left_cents"], 500);
    let cards = queries.get("/v1/views/card").await.json();
    assert_eq!(cards["rows"][0]["key"], "c-1");
}

async fn shown(queries: &Client, path: &str, token: &str) -> serde_json::Value {
    let fresh = [("consistency-token", token), ("prefer", "wait=10")];
    eventually(&format!("{path} is shown"), async || {
        let answer = queries.get_with(path, &fresh).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await
}
