//! Both tiers checked against their description by Schemathesis, which generates valid and invalid requests and
//! compares statuses, content types, headers and bodies of the answers, and that invalid requests are refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::stack::Stack;

const VERSION: &str = "schemathesis==4.32.5";
const OPENAPI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/json/openapi.json");
/// Folder of a virtual environment that has only this tool and is created once.
const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/schemathesis");
/// Upper bound of a run on a machine with two cores, beside other work.
const WITHIN: Duration = Duration::from_secs(900);
/// The only check that does not apply. A request that is valid by the description may be refused: domain rules reject
/// commands (422), conditions fail (412), and a schema cannot express exclusive parameters such as `version` and `at`.
const EXCLUDED: &str = "positive_data_acceptance";
/// Excluded because the tool does not send JSON lines.
const BATCH: &str = "commands.batch";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: installs schemathesis from PyPI"]
async fn whatever_schemathesis_makes_of_the_description_is_answered_as_it_says() {
    let program = installed().await;
    let stack = Stack::up_with(&[]).await;
    // The token contains the id of the log. Queries with the token of another log are refused.
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

/// Installs the tool if it is missing and returns its path.
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

/// Runs a program and asserts that it succeeds.
async fn finished(mut command: Command) {
    command.current_dir(FOLDER).kill_on_drop(true);
    let output = tokio::time::timeout(WITHIN, command.output()).await.expect("the program ends in time").unwrap();
    let [told, failed] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{command:?}: {told}{failed}");
}
