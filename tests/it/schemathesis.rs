//! Both tiers against their description, by a tool that makes requests of it, right and wrong ones, and compares the
//! answers: statuses, types, headers and bodies, and that what is not as it says is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::stack::Stack;

const VERSION: &str = "schemathesis==4.32.5";
const OPENAPI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/json/openapi.json");
/// From a venv that has only the tool in it, built once.
const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/schemathesis");
/// On a machine with two cores, beside other work.
const WITHIN: Duration = Duration::from_secs(900);
/// Every check but those that do not apply. A request that is valid by the description may be refused: the rules reject
/// commands (422), conditions fail (412), and what excludes each other, such as `version` and `at`, no schema says.
const EXCLUDED: &str = "positive_data_acceptance";
/// It sends no lines of JSON, so batches are left out.
const BATCH: &str = "commands.batch";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: installs schemathesis from PyPI"]
async fn whatever_schemathesis_makes_of_the_description_is_answered_as_it_says() {
    let program = installed().await;
    let stack = Stack::up_with(&[]).await;
    // The id of the log is in it: with another token, each query would be refused.
    let token = stack.client().get("/v1/views/product").await.token();
    let config = Path::new(FOLDER).join("schemathesis.toml");
    fs::write(&config, format!("[parameters]\n\"header.Consistency-Token\" = \"{token}\"\n")).unwrap();
    let url = format!("http://{}", stack.addr());
    let mut run = Command::new(program);
    run.arg("--config-file").arg(&config).args(["run", OPENAPI, "--url", &url]);
    run.args(["--checks", "all", "--exclude-checks", EXCLUDED, "--exclude-operation-id", BATCH]);
    run.args(["--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--seed", "1"]);
    run.args(["--continue-on-failure", "--no-color"]);
    finished(run).await;
}

/// Installs the tool where it is not there yet, and returns its program.
async fn installed() -> PathBuf {
    let programs = Path::new(FOLDER).join("venv/bin");
    let (program, stamp) = (programs.join("schemathesis"), Path::new(FOLDER).join("installed"));
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == VERSION) {
        return program;
    }
    fs::create_dir_all(FOLDER).unwrap();
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(Path::new(FOLDER).join("venv"));
    finished(venv).await;
    let mut install = Command::new(programs.join("pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check", VERSION]);
    finished(install).await;
    fs::write(stamp, VERSION).unwrap();
    program
}

/// Runs a program to its end, which is to be a success.
async fn finished(mut command: Command) {
    command.current_dir(FOLDER).kill_on_drop(true);
    let output = tokio::time::timeout(WITHIN, command.output()).await.expect("it ends in time").unwrap();
    let [told, failed] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{command:?}: {told}{failed}");
}
