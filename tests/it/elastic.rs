//! Instances come and go, and programs are replaced, while clients go on. [`crate::upgrades`] replaces them by others.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use crate::fixture::{Answer, Client, eventually, server};
use crate::stack::{Stack, text};

pub(crate) const ONE_OF_EACH: [&str; 6] = ["--command-apis", "1", "--query-apis", "1", "--projectors", "1"];
pub(crate) const PRODUCTS: u32 = 24;
/// Interval between requests, whether earlier ones have been answered or not.
const EVERY: Duration = Duration::from_millis(15);

/// Clients that send commands, batches and queries to the edge at a fixed rate.
pub(crate) struct OpenLoop {
    enough: Arc<AtomicBool>,
    running: JoinHandle<Vec<Outcome>>,
}

pub(crate) struct Outcome {
    pub(crate) begun: Instant,
    pub(crate) waited: Duration,
    /// Answer or error if the request failed.
    failure: Option<String>,
}

impl OpenLoop {
    pub(crate) async fn start(client: Client) -> Self {
        for path in (0..PRODUCTS).map(|product| format!("/v1/products/p-{product}")) {
            let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
            client.post(&format!("{path}/register"), registered).await;
            // Some of the queries take what is shown.
            eventually("the product is shown", async || {
                (client.get_with(&path, &[("prefer", "wait=0")]).await.status == 200).then_some(())
            })
            .await;
        }
        let enough = Arc::new(AtomicBool::new(false));
        let running = tokio::spawn(run(client, enough.clone()));
        Self { enough, running }
    }

    /// Ends the load and asserts that no request has failed. The wait is only printed: on a machine that also runs the
    /// clients and other tests, it says nothing about the services. `cargo stack bench elastic` measures it.
    pub(crate) async fn end(self) -> Vec<Outcome> {
        self.enough.store(true, Ordering::Relaxed);
        let outcomes = self.running.await.unwrap();
        let failures: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.failure.as_ref()).collect();
        let longest = outcomes.iter().map(|outcome| outcome.waited).max().unwrap();
        println!("{} requests, longest wait {longest:?}, {} failed", outcomes.len(), failures.len());
        assert!(failures.is_empty(), "{} of {} requests failed: {failures:#?}", failures.len(), outcomes.len());
        outcomes
    }
}

async fn run(client: Client, enough: Arc<AtomicBool>) -> Vec<Outcome> {
    let mut requests = JoinSet::new();
    let mut interval = tokio::time::interval(EVERY);
    for number in 0_u32.. {
        interval.tick().await;
        if enough.load(Ordering::Relaxed) {
            break;
        }
        let client = client.clone();
        requests.spawn(async move {
            let begun = Instant::now();
            let failure = request(&client, number).await.err();
            Outcome { begun, waited: begun.elapsed(), failure }
        });
    }
    requests.join_all().await
}

/// Sends a command, a command and a query that has to show it, a query that no cache answers, or a batch of four.
async fn request(client: &Client, number: u32) -> Result<(), String> {
    let product = |of: u32| format!("p-{}", of % PRODUCTS);
    let path = format!("/v1/products/{}", product(number / 4));
    let quantity = json!({ "quantity": 1 });
    let is_good = |answer: Result<Answer, reqwest::Error>| match answer {
        Ok(answer) if answer.status == 200 => Ok(answer),
        Ok(answer) => Err(format!("{number}: {answer:?}")),
        Err(error) => Err(format!("{number}: {error:?}")),
    };
    match number % 4 {
        0 => is_good(client.try_post(&format!("{path}/restock"), &[], quantity).await).map(drop),
        1 => {
            let token = is_good(client.try_post(&format!("{path}/restock"), &[], quantity).await)?.token();
            let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
            is_good(client.try_send(Method::GET, &path, &fresh, None).await).map(drop)
        }
        2 => is_good(client.try_send(Method::GET, &path, &[("prefer", "wait=0")], None).await).map(drop),
        _ => {
            let line = |n| {
                let key = format!("{number}-{n}");
                json!({ "aggregate": "products", "id": product(number + n), "command": "restock", "data": quantity, "key": key })
            };
            let mut lines: Vec<Value> = (0..4).map(line).collect();
            // A line is sent to its owner only once, so a line whose owner has just changed is for the client to send again.
            while !lines.is_empty() {
                let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
                let headers = [("content-type", "application/x-ndjson")];
                let sent = client.try_send(Method::POST, "/v1/commands", &headers, Some(body.into_bytes())).await;
                let answers = is_good(sent)?;
                let answers: Vec<Value> =
                    answers.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                let again = |answer: &Value| answer["status"] == 503;
                if let Some(answer) = answers.iter().find(|answer| answer["status"] != 200 && !again(answer)) {
                    return Err(format!("{number}: {answer}"));
                }
                lines = lines.into_iter().zip(&answers).filter(|(_, answer)| again(answer)).map(|of| of.0).collect();
            }
            Ok(())
        }
    }
}

/// Returns the folder with the programs of this build.
pub(crate) fn programs() -> PathBuf {
    PathBuf::from(server("TEST_BIN_DIR"))
}

/// Makes a build whose projector never gets ready, although its tools work.
fn broken_build(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for program in ["command-api", "query-api"] {
        symlink(programs().join(program), folder.join(program)).unwrap();
    }
    let projector = folder.join("projector");
    let works = programs().join("projector");
    let script = format!("#!/bin/sh\n[ $# -gt 0 ] && exec {} \"$@\"\nexec sleep 60\n", works.display());
    fs::write(&projector, script).unwrap();
    fs::set_permissions(&projector, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Returns name, process id and folder of the program of each instance.
async fn instances(stack: &Stack) -> Vec<(String, u64, PathBuf)> {
    let status = stack.status().await;
    let services = status["processes"].as_array().unwrap().iter().filter(|process| {
        let name = process["name"].as_str().unwrap();
        ["command-api-", "query-api-", "projector-"].iter().any(|service| name.starts_with(service))
    });
    let of = |process: &Value| {
        assert_eq!((&process["state"], &process["restarts"]), (&json!("ready"), &json!(0)), "{status}");
        let folder = Path::new(process["program"].as_str().unwrap()).parent().unwrap().to_owned();
        (process["name"].as_str().unwrap().to_owned(), process["pid"].as_u64().unwrap(), folder)
    };
    services.map(of).collect()
}

async fn names(stack: &Stack) -> Vec<String> {
    instances(stack).await.into_iter().map(|(name, ..)| name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_instances_come_and_go_and_a_build_that_is_never_ready_is_rolled_back() {
    let stack = Stack::up_with(&ONE_OF_EACH).await;
    let load = OpenLoop::start(stack.client()).await;

    stack.tell(&["scale", "query-api=2", "command-api=2", "projector=2"]).await;
    let more = ["command-api-1", "command-api-2", "query-api-1", "query-api-2"];
    assert_eq!(names(&stack).await, [&more[..], &["projector-1", "projector-2"]].concat());
    stack.tell(&["scale", "query-api=1", "command-api=1", "projector=1"]).await;
    let before = instances(&stack).await;
    assert_eq!(names(&stack).await, ["command-api-1", "query-api-1", "projector-1"]);

    for (wanted, why) in [("command-api=13", "a partition"), ("query-api=33", "ports"), ("projector=0", "nobody")] {
        let refused = stack.command(&["scale", wanted]).output().await.unwrap();
        assert!(!refused.status.success() && text(&refused).contains(why), "{}", text(&refused));
    }

    stack.tell(&["deploy", programs().to_str().unwrap()]).await;
    let after = instances(&stack).await;
    let of = |instances: &[(String, u64, PathBuf)], number: usize| (instances[number].0.clone(), instances[number].1);
    for number in 0..3 {
        assert_eq!(of(&before, number).0, of(&after, number).0);
        assert_ne!(of(&before, number), of(&after, number), "the process is another one");
    }

    let broken = programs().join(format!("broken-{}", std::process::id()));
    broken_build(&broken);
    let deploy = ["deploy", broken.to_str().unwrap(), "--ready-within", "10"];
    let refused = stack.command(&deploy).output().await.unwrap();
    fs::remove_dir_all(&broken).unwrap();
    assert!(!refused.status.success(), "{}", text(&refused));
    for part in ["projector-2 is not ready in time", "rolling back", "all instances have their previous programs"] {
        assert!(text(&refused).contains(part), "{part:?} is not in {}", text(&refused));
    }
    let restored = instances(&stack).await;
    assert_eq!(restored.len(), 3);
    assert!(restored.iter().all(|(.., folder)| *folder == before[0].2), "{restored:?}");
    load.end().await;
}
