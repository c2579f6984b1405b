//! The whole system as an operator runs it, and the faults that it survives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use schemas::aggregate::{AggregateType, partition};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::fixture::{Client, connect_to_redis, eventually, server};

/// Starts the services that were built for the tests.
const UP: [&str; 3] = ["up", "--detach", "--as-built"];
/// Upper bound of the start of a whole stack on a busy machine.
const START: Duration = Duration::from_secs(300);

/// Serializes the stacks, which share ports and the machine.
static TURN: Mutex<()> = Mutex::const_new(());

/// Returns the first port of a stack.
pub(crate) fn base_port() -> u16 {
    server("TEST_STACKS_BASE_PORT").parse().expect("a port")
}

/// A running stack. It is stopped when dropped.
pub(crate) struct Stack {
    state: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Stack {
    /// Returns a stack that is not started, with an absent state directory.
    pub(crate) async fn new() -> Self {
        let turn = TURN.lock().await;
        let state = PathBuf::from(server("TEST_STACKS_DIR")).join(Uuid::new_v4().simple().to_string());
        Self { state, _turn: turn }
    }

    pub(crate) async fn up() -> Self {
        Self::up_with(&[]).await
    }

    pub(crate) async fn up_with(options: &[&str]) -> Self {
        let stack = Self::new().await;
        let output = tokio::time::timeout(START, stack.command(&UP).args(options).output());
        let output = output.await.expect("the stack starts in time").unwrap();
        assert!(output.status.success(), "{}", text(&output));
        stack
    }

    /// Returns its state directory.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(server("TEST_STACK_BIN"));
        command.args(["--profile", "dev", "--base-port", &base_port().to_string(), "--state-dir"]);
        command.arg(&self.state).args(args).kill_on_drop(true);
        // The program of `replay` and `sale` was built for the tests as well.
        command.env("CARGO", "true");
        command
    }

    pub(crate) async fn tell(&self, args: &[&str]) {
        self.told(args).await;
    }

    /// Runs a command that must succeed, and returns its output.
    pub(crate) async fn told(&self, args: &[&str]) -> String {
        let output = self.command(args).output().await.unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        text(&output)
    }

    /// Returns the file of the authority of a secured stack.
    pub(crate) fn authority(&self) -> PathBuf {
        self.state.join("certificates/authority.pem")
    }

    /// Returns the `Authorization` of staff in a secured stack.
    pub(crate) fn staff(&self) -> String {
        format!("Bearer {}", std::fs::read_to_string(self.state.join("staff-token")).unwrap())
    }

    /// Returns the port of a process's listener.
    pub(crate) async fn port(&self, process: &str, listener: &str) -> u16 {
        self.process(process).await["ports"][listener].as_u64().unwrap().try_into().unwrap()
    }

    pub(crate) async fn status(&self) -> Value {
        let output = self.command(&["status", "--json"]).output().await.unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn process(&self, name: &str) -> Value {
        let status = self.status().await;
        let mut processes = status["processes"].as_array().unwrap().iter();
        processes.find(|process| process["name"] == name).unwrap_or_else(|| panic!("{name} is in {status}")).clone()
    }

    /// Kills a service and waits until the supervisor has restarted it.
    pub(crate) async fn kill(&self, name: &str) {
        let restarts = |process: &Value| process["restarts"].as_u64().unwrap();
        let before = restarts(&self.process(name).await);
        self.tell(&["kill", name]).await;
        eventually("the service was restarted and is ready", async || {
            let now = self.process(name).await;
            (restarts(&now) > before && now["state"] == "ready").then_some(())
        })
        .await;
    }

    /// Returns its brokers, topic and number of partitions.
    pub(crate) fn log(&self) -> (String, String, u32) {
        (format!("127.0.0.1:{}", base_port() + 1), "events".to_owned(), 12)
    }

    /// Returns the text of a log of the stack.
    pub(crate) fn text_of_log(&self, name: &str) -> String {
        std::fs::read_to_string(self.state.join("logs").join(format!("{name}.log"))).unwrap()
    }

    /// Returns the address of the edge.
    pub(crate) fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], base_port()))
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.addr()))
    }

    /// Returns a client of a service's admin listener.
    pub(crate) async fn admin_client(&self, name: &str) -> Client {
        Client::new(&format!("http://127.0.0.1:{}", self.process(name).await["ports"]["admin"]))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let mut down = self.command(&["down"]).into_std();
        let ended = down.output();
        if std::thread::panicking() {
            eprintln!("the logs are in {}", self.state.join("logs").display());
        } else {
            assert!(ended.is_ok_and(|output| output.status.success()), "the stack failed to stop");
            // A failure would only leave files.
            let _ = std::fs::remove_dir_all(&self.state);
        }
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_shows_no_difference_though_every_service_is_killed_in_its_midst() {
    let stack = Stack::up().await;
    let replay = stack.command(&["replay", "--rate", "4000"]).output();
    let replay = tokio::spawn(replay);
    for round in 0..2 {
        for service in ["command-api", "projector", "query-api"] {
            assert!(!replay.is_finished(), "the replay ended before everything was killed");
            stack.kill(&format!("{service}-{}", round + 1)).await;
        }
    }
    stack.kill("edge").await;
    assert!(!replay.is_finished(), "the replay ended before everything was killed");
    let output = replay.await.unwrap().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("differences 0"), "{}", text(&output));

    for options in [&["audit"][..], &["audit", "--full"], &["audit", "--sample", "10"]] {
        let audit = stack.command(options).output().await.unwrap();
        assert!(audit.status.success() && text(&audit).contains("differences  0"), "{}", text(&audit));
    }

    let again = stack.command(&["replay"]).output().await.unwrap();
    assert!(again.status.success(), "{}", text(&again));
    assert!(text(&again).contains("this replay changed nothing"), "{}", text(&again));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sale_sells_its_units_to_just_so_many_buyers_and_every_order_comes_to_its_end() {
    let stack = Stack::up_with(&["--payment-window", "3"]).await;
    let sale = ["sale", "--buyers", "400", "--units", "60", "--watchers", "20", "--connections", "16"];
    let output = stack.command(&sale).output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("All checks passed."), "{}", text(&output));
    for (service, path) in
        [("command-api-1", "/quarantine/product/none/release"), ("projector-1", "/parked/reactor/retry")]
    {
        stack.admin_client(service).await.post(path, json!({})).await;
        let is_logged = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            line["message"] == "admin action" && line["http.path"] == path && line["peer.ip"] == "127.0.0.1"
        };
        assert!(stack.text_of_log(service).lines().any(is_logged), "{service}");
    }
    for service in ["command-api", "projector", "query-api"] {
        shows_the_labels_that_are_listed(&stack, service).await;
    }
}

/// Compares the labels of every series that a service shows with those of `deploy/METRICS.md`.
async fn shows_the_labels_that_are_listed(stack: &Stack, service: &str) {
    let reference = include_str!("../../deploy/METRICS.md");
    let section = reference.split("\n## ").find(|section| section.lines().next() == Some(service)).unwrap();
    let listed: BTreeMap<_, BTreeSet<_>> = section
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let name = cells.next()?.trim().trim_end_matches('`');
            Some((
                name,
                cells
                    .nth(1)?
                    .split(',')
                    .map(|label| label.trim().trim_matches('`'))
                    .filter(|label| !label.is_empty())
                    .collect(),
            ))
        })
        .collect();
    let shown = stack.admin_client(&format!("{service}-1")).await.get("/metrics").await.text;
    let series: Vec<_> = shown.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(series.len() > 20, "{shown}");
    for line in series {
        let (name, labels) = line.split_once(['{', ' ']).unwrap();
        let suffix = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| name.strip_suffix(suffix));
        let listed = listed.get(name).or_else(|| listed.get(suffix?)).unwrap_or_else(|| panic!("{name} is not listed"));
        // What precedes `="` ends with a label's name, after the previous label's value.
        let names = labels.rmatch_indices("=\"").map(|(end, _)| labels[..end].rsplit(',').next().unwrap());
        assert_eq!(names.filter(|name| *name != "le").collect::<BTreeSet<_>>(), *listed, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn projectors_that_sleep_and_a_redis_that_forgets_change_no_view() {
    let stack = Stack::up_with(&["--projectors", "3"]).await;
    let replay = tokio::spawn(stack.command(&["replay", "--rate", "4000"]).output());
    // One projector sleeps within its session and one past it; the latter loses its partitions, and the batch that it
    // had begun is void.
    for (projector, asleep) in [("projector-1", 0.2), ("projector-2", 8.0), ("projector-3", 0.5)] {
        stack.tell(&["kill", projector, "STOP"]).await;
        tokio::time::sleep(Duration::from_secs_f64(asleep)).await;
        stack.tell(&["kill", projector, "CONT"]).await;
        let mut connection = connect_to_redis(&format!("redis://127.0.0.1:{}", base_port() + 21)).await.unwrap();
        redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
    }
    let output = replay.await.unwrap().unwrap();
    assert!(output.status.success() && text(&output).contains("differences 0"), "{}", text(&output));
    let audit = stack.command(&["audit", "--full"]).output().await.unwrap();
    assert!(audit.status.success() && text(&audit).contains("differences  0"), "{}", text(&audit));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_commands_are_refused_queries_go_on_and_nothing_is_lost() {
    let stack = Stack::up().await;
    let client = stack.client();
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    let token = client.post("/v1/products/cd/register", registered).await.token();
    let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    assert_eq!(client.get_with("/v1/products/cd", &headers).await.status, 200);

    stack.tell(&["stop", "kafka-1"]).await;
    let key = [("idempotency-key", "in-the-outage"), ("prefer", "wait=1")];
    let restock = json!({ "quantity": 5 });
    let refused = client.post_with("/v1/products/cd/restock", &key, restock.clone()).await;
    assert_eq!((refused.status.as_u16(), refused.header("idempotency-key")), (503, Some("in-the-outage")));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(client.get("/v1/products/cd").await.status, 200);

    stack.tell(&["start", "kafka-1"]).await;
    let answer = eventually("a retry under the same key is accepted", async || {
        let answer = client.post_with("/v1/products/cd/restock", &key, restock.clone()).await;
        Some(answer).filter(|answer| answer.status != 503)
    });
    let answer = answer.await.accepted(&["product.restocked.v1"]);
    assert_eq!(answer.header("etag"), Some("\"2\""), "the retried command should take effect once");
    let token = answer.token();
    let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    let shown = eventually("the views continue", async || {
        Some(client.get_with("/v1/products/cd", &headers).await).filter(|answer| answer.status == 200)
    });
    assert_eq!(shown.await.json()["data"]["available"], 6);
    for service in ["command-api-1", "command-api-2", "projector-1", "projector-2", "query-api-1", "query-api-2"] {
        assert_eq!(stack.process(service).await["restarts"], 0, "{service} needs no restart");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_there_after_down_and_up_and_a_second_up_is_refused() {
    let stack = Stack::up().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    stack.client().post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
    let second = stack.command(&["up", "--as-built"]).output().await.unwrap();
    assert!(!second.status.success() && text(&second).contains("already running"), "{}", text(&second));
    a_report_has_the_facts_and_nothing_of_anybody(&stack).await;
    let pids: Vec<u64> = stack.status().await["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|process| process["pid"].as_u64().unwrap())
        .collect();
    stack.tell(&["down"]).await;
    for pid in pids {
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists(), "process {pid} is still running");
    }
    stack.tell(&UP).await;
    let answer = stack.client().post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
    assert_eq!(answer.accepted(&["product.restocked.v1"]).header("etag"), Some("\"2\""));
}

/// Asserts that a report of a fault has the facts, and neither secrets nor names of customers, in any of its files.
async fn a_report_has_the_facts_and_nothing_of_anybody(stack: &Stack) {
    let lines = json!([{ "product": "none", "quantity": 1, "amount_cents": 1 }]);
    let order = json!({ "customer": "planted-customer", "lines": lines });
    let token = stack.client().post("/v1/orders/planted-order/place", order).await.token();
    let asked =
        [("x-request-id", "planted-request"), ("user-agent", "planted-agent"), ("consistency-token", token.as_str())];
    // Each leaves lines in the logs.
    stack.client().get_with("/v1/customers/planted-customer?after=planted-query", &asked).await;
    let admin = stack.admin_client("projector-1").await;
    admin.post("/parked/order/customer/planted-customer/retry", json!({})).await;
    eventually("the access log has the query", async || {
        stack.text_of_log("access").contains("planted-customer").then_some(())
    })
    .await;
    let file = stack.state.join("report.tar.gz");
    stack.tell(&["report", file.to_str().unwrap()]).await;
    let folder = stack.state.join("unpacked");
    std::fs::create_dir(&folder).unwrap();
    let unpack = Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(&folder).status().await;
    assert!(unpack.unwrap().success());
    let (mut folders, mut texts) = (vec![folder], std::collections::BTreeMap::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                texts.insert(entry.path(), std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    let secret = |name: &str| std::fs::read_to_string(stack.state.join(name)).unwrap().trim().to_owned();
    for secret in ["planted", &secret("service-token"), &secret("postgres-password")] {
        for (path, text) in &texts {
            assert!(!text.contains(secret), "{} has {secret}", path.display());
        }
    }
    for (name, fact) in [
        ("processes.json", "\"query-api-1\""),
        ("machine.txt", "system: Linux"),
        ("postgres.txt", "journal_tail"),
        ("kafka.txt", "PartitionCount"),
        ("query-api-1/settings.txt", "POSTGRES_CONNECTIONS=16"),
        ("query-api-1/status.json", "\"instances\""),
        ("command-api-1/metrics.txt", "stampede_commands_total"),
        ("projector-1/build.json", "\"rustc\""),
        ("logs/access.log", "/v1/customers/*"),
        ("logs/projector-1.log", "admin action"),
    ] {
        let found = texts
            .iter()
            .find(|(path, _)| path.ends_with(name))
            .unwrap_or_else(|| panic!("no {name}: {:?}", texts.keys()));
        assert!(found.1.contains(fact), "{name} lacks {fact}: {}", found.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_fails_where_a_view_is_wrong_and_where_nothing_runs() {
    let stack = Stack::up().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    let token = stack.client().post("/v1/products/cd/register", registered).await.token();
    let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    // Redis may show the row before Postgres has it.
    assert_eq!(stack.client().get_with("/v1/views/product", &headers).await.status, 200);
    let password = std::fs::read_to_string(stack.state.join("postgres-password")).unwrap();
    let url = format!("postgresql://stampede:{password}@127.0.0.1:{}/stampede", base_port() + 20);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(client.execute("UPDATE product_rows SET version = 7 WHERE key = 'cd'", &[]).await.unwrap(), 1);
    let audit = stack.command(&["audit"]).output().await.unwrap();
    assert!(!audit.status.success(), "{}", text(&audit));
    assert!(text(&audit).contains("difference   product cd, Postgres: expected version 1 {"), "{}", text(&audit));
    stack.tell(&["down"]).await;
    let audit = stack.command(&["audit"]).output().await.unwrap();
    assert!(!audit.status.success() && text(&audit).contains("no stack is ready"), "{}", text(&audit));
}

#[tokio::test]
#[ignore = "second gate: it needs its own stack and tests a rare fault"]
async fn where_a_broker_lost_what_it_had_acknowledged_the_instance_begins_anew_and_serves_other_partitions() {
    let stack = Stack::up_with(&["--command-apis", "1"]).await;
    let client = stack.client();
    let product = |n: u32| format!("cd-{n}");
    let partition_of = |n: u32| partition(AggregateType::Product, &product(n), 12);
    let other = (2..).find(|n| partition_of(*n) != partition_of(1)).unwrap();
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    for n in [1, other] {
        let path = format!("/v1/products/{}/register", product(n));
        client.post(&path, registered.clone()).await.accepted(&["product.registered.v1"]);
    }
    let restock =
        async |n| client.post(&format!("/v1/products/{}/restock", product(n)), json!({ "quantity": 1 })).await;
    for _ in 0..20 {
        restock(1).await.accepted(&["product.restocked.v1"]);
    }
    stack.tell(&["stop", "kafka-1"]).await;
    let data = stack.state.join("data/kafka-1");
    std::fs::remove_file(data.join(".kafka_cleanshutdown")).unwrap();
    let mut lost = false;
    for file in std::fs::read_dir(data.join(format!("events-{}", partition_of(1)))).unwrap() {
        let path = file.unwrap().path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("log") => {
                let file = std::fs::File::options().write(true).open(&path).unwrap();
                file.set_len(file.metadata().unwrap().len() / 2).unwrap();
                lost = true;
            }
            Some("snapshot" | "index" | "timeindex") => std::fs::remove_file(&path).unwrap(),
            _ => {}
        }
    }
    assert!(lost);
    stack.tell(&["start", "kafka-1"]).await;
    eventually("command-api was restarted because of the gap and serves again", async || {
        let (_, served) = tokio::join!(restock(1), restock(other));
        let restarts = stack.process("command-api-1").await["restarts"].as_u64().unwrap();
        (restarts > 0 && served.status == 200).then_some(())
    })
    .await;
}
