//! The commands of the documents, run as they are written. A command that neither test runs is in [`NOT_RUN`], with the
//! reason.

mod blocks;
mod shell;

use serde_json::{Value, json};
use tokio::process;

use crate::fixture::{SERVICE_TOKEN, eventually};
use crate::stack::Stack;
use blocks::Command;
use shell::Shell;

const BOOK: &str = "deploy/README.md";
const RUNBOOKS: &str = "deploy/RUNBOOKS.md";
/// The path of a newcomer.
const PATH: (&str, &str) = (BOOK, "From nothing to a secured, scaled and upgraded system");
const FIRST_ROUND_TRIP: (&str, &str) = ("README.md", "Try it");
const SETTINGS: (&str, &str) = (BOOK, "Settings");
const STATUS: (&str, &str) = (BOOK, "Status");
const LOG_LEVELS: (&str, &str) = (BOOK, "Log levels");
const ARCHIVE: (&str, &str) = (BOOK, "Archive");
const RECOVERY: (&str, &str) = (BOOK, "Recovery");
const EXCEPTIONS: (&str, &str) = (RUNBOOKS, "A partition is halted");
const JARS: (&str, &str) = (BOOK, "Kafka's jars");

/// Sections whose commands the tests below run, but for those in [`NOT_RUN`].
const RUN: [(&str, &str); 9] =
    [PATH, FIRST_ROUND_TRIP, SETTINGS, STATUS, LOG_LEVELS, ARCHIVE, RECOVERY, EXCEPTIONS, JARS];

const GATES: &str = "the gates run these tests and checks";
const MEASURES: &str = "measures for minutes, on a machine that does nothing else";
const COMPOSE: &str = "needs the images of other projects; it::images runs the file with images that stand in for them";
const CLUSTER: &str = "needs a cluster; it::kubernetes runs it on a control plane";

/// Commands that no test runs as they are written: the document, the beginning of the command, and the reason.
const NOT_RUN: [(&str, &str, &str); 23] = [
    ("README.md", "cargo stack up", "stays in the foreground; the path above runs it in the background"),
    ("README.md", "cargo stack test", GATES),
    (BOOK, "compose/secrets.sh", COMPOSE),
    (BOOK, "docker compose", COMPOSE),
    (BOOK, "curl -i http://127.0.0.1:8080/v1/products/cd-1/register -H \"Authorization", COMPOSE),
    (BOOK, "cargo stack renew  ", "the path has it"),
    (BOOK, "cargo stack renew --", "it::secured runs it while clients send requests"),
    (BOOK, "deploy/kubernetes/secrets.sh", CLUSTER),
    (BOOK, "kubectl", CLUSTER),
    (BOOK, "for service in statefulset/command-api", CLUSTER),
    (
        RUNBOOKS,
        "command-api except PARTITION",
        "needs a record that nobody can read; it::strays writes one, and runs it",
    ),
    ("schemas/README.md", "UPDATE_CONTRACTS=1 cargo test", "it::adding runs it in a copy of the sources"),
    ("tests/README.md", "cargo stack test", GATES),
    ("tests/load/README.md", "cargo stack replay", "it::stack runs it"),
    ("tests/load/README.md", "cargo stack sale", "a rush for a quiet machine; the path above runs a smaller one"),
    ("tests/load/README.md", "cargo stack bench", MEASURES),
    ("tests/peers/README.md", "cargo stack bench", MEASURES),
    (".github/CONTRIBUTING.md", "cargo test", GATES),
    (".github/CONTRIBUTING.md", "cargo stack test", GATES),
    (".github/CONTRIBUTING.md", "cargo fmt", GATES),
    (".github/CONTRIBUTING.md", "cargo clippy", GATES),
    (".github/CONTRIBUTING.md", "PROPTEST_CASES=24 cargo mutants", "takes hours, and reports what to look at"),
    (".github/CONTRIBUTING.md", "cargo mutants", "takes hours, and reports what to look at"),
];

/// Settings without which no service starts. Nothing listens there.
const OF_A_SERVICE: [(&str, &str); 4] = [
    ("KAFKA_BROKERS", "127.0.0.1:1"),
    ("POSTGRES_URL", "postgres://x@127.0.0.1:1/x"),
    ("SERVICE_TOKEN", SERVICE_TOKEN),
    ("INTERNAL_URL", "http://localhost:1"),
];

/// Returns the reason why no test runs a command.
fn reason_of(command: &Command) -> Option<usize> {
    let is_meant = |(document, beginning, _): &(&str, &str, &str)| {
        command.document == *document && command.text.starts_with(beginning)
    };
    NOT_RUN.iter().position(is_meant)
}

/// Returns the commands of a section that are run.
fn to_run(section: (&str, &str)) -> Vec<Command> {
    blocks::of_section(section).into_iter().filter(|command| reason_of(command).is_none()).collect()
}

#[tokio::test]
async fn every_command_of_a_document_is_run_or_listed_with_the_reason() {
    let commands = blocks::all();
    assert!(commands.len() > 40, "{commands:#?}");
    let mut reasons = vec![0; NOT_RUN.len()];
    for command in &commands {
        let is_in = |(document, section): &(&str, &str)| command.document == *document && command.section == *section;
        match reason_of(command) {
            Some(reason) => reasons[reason] += 1,
            None => assert!(RUN.iter().any(is_in), "no test runs {command:#?}, and NOT_RUN has no reason"),
        }
        let checked = process::Command::new("bash").args(["-n", "-c", &command.text]).output().await.unwrap();
        assert!(checked.status.success() && checked.stderr.is_empty(), "{command:#?}: {checked:?}");
    }
    for (count, listed) in reasons.iter().zip(NOT_RUN) {
        assert!(*count > 0, "no document has the command of {listed:?}");
    }
    assert!(RUN.iter().all(|section| !to_run(*section).is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_to_a_secured_scaled_and_upgraded_system() {
    let stack = Stack::new().await;
    Shell::as_built(&stack).run(&to_run(PATH)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_round_trip_is_as_shown() {
    let stack = Stack::up().await;
    let shell = Shell::as_built(&stack);
    let mut token = String::new();
    for mut command in to_run(FIRST_ROUND_TRIP) {
        let shown = std::mem::take(&mut command.prints);
        // Each log has an id of its own, and so other tokens.
        if let Some((before, of_document)) = command.text.split_once("Consistency-Token: ") {
            let (_, after) = of_document.split_once('\'').unwrap();
            command.text = format!("{before}Consistency-Token: {token}'{after}");
        }
        let printed = shell.run(&[command]).await.remove(0);
        let mut lines = printed.lines();
        for wanted in &shown {
            assert!(lines.any(|line| is_as_shown(line, wanted)), "no {wanted:?} in {printed}");
        }
        let of_token = printed.lines().find_map(|line| line.strip_prefix("consistency-token: "));
        of_token.unwrap().trim().clone_into(&mut token);
    }
}

/// Compares a line of an answer with that of the document, but for keys and tokens.
fn is_as_shown(line: &str, wanted: &str) -> bool {
    let varies = ["consistency-token: ", "idempotency-key: "].into_iter().find(|name| wanted.starts_with(name));
    if let Some(name) = varies {
        return line.starts_with(name);
    }
    let body = |text: &str| {
        let mut body: Value = serde_json::from_str(text).ok()?;
        body.as_object_mut()?.remove("token");
        Some(body)
    };
    line.trim_end() == wanted || body(line).is_some_and(|line| Some(line) == body(wanted))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_that_lost_everything_is_recovered_from_the_archive_of_its_log() {
    let stack = Stack::up().await;
    let commands = stack.client();
    let register = json!({ "name": "Kind of Blue", "price_cents": 1177, "stock": 100 });
    commands.post("/v1/products/cd-1/register", register).await.accepted(&["product.registered.v1"]);
    let line = json!({ "product": "cd-1", "quantity": 2, "amount_cents": 2354 });
    let place = json!({ "customer": "ann", "lines": [line] });
    commands.post("/v1/orders/order-1/place", place).await.accepted(&["order.placed.v1"]);
    let has = async |status: &str| {
        eventually("the order is confirmed", async || {
            let order = commands.try_get("/v1/orders/order-1").await.ok()?;
            (order.status == 200 && order.json()["data"]["status"] == status).then_some(order.text)
        })
        .await
    };
    let before = has("confirmed").await;
    let shell = Shell::as_built(&stack);
    let printed = shell.run(&[to_run(STATUS), to_run(LOG_LEVELS)].concat()).await;
    assert!(printed[0].contains("command-api") && printed[2].contains("query_api=debug"), "{printed:?}");
    shell.run(&to_run(ARCHIVE)).await;
    let printed = shell.run(&to_run(RECOVERY)).await;
    assert!(printed[0].contains("0 records have open ones") && printed[0].contains("1 set"), "{}", printed[0]);
    assert_eq!(has("confirmed").await, before);
}

#[tokio::test]
async fn the_commands_of_a_service_run_without_a_stack() {
    let stack = Stack::new().await;
    let shell = Shell::as_built(&stack).with(&OF_A_SERVICE);
    let printed = shell.run(&to_run(SETTINGS)).await;
    assert!(printed[0].contains("SERVICE_TOKEN=***"), "{}", printed[0]);
    shell.run(&to_run(EXCEPTIONS)).await;
    assert!(stack.state().join("checkout/FILE.pub").is_file());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: it compiles everything in a new clone, twice"]
async fn a_newcomer_gets_there_from_a_new_clone() {
    let stack = Stack::new().await;
    let shell = Shell::in_new_clone(&stack).await;
    for output in shell.run(&to_run(PATH)).await {
        println!("{output}");
    }
    shell.run(&to_run(JARS)).await;
    let mut compared = process::Command::new("git");
    let output =
        compared.args(["diff", "--exit-code"]).current_dir(stack.state().join("checkout")).output().await.unwrap();
    assert!(output.status.success(), "the list of the jars changed: {}", crate::stack::text(&output));
}
