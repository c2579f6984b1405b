//! Growth of the log to four times as many partitions while the shop is used.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::kafka::KafkaSettings;
use command_api::grow::{Growth, grow};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::fixture::{Answer, Client, DEADLINE, Shop, eventually, pause, read_log};
use crate::stack::Stack;

const PAYMENT_WINDOW_SECS: u32 = 12;
const STOCK: u64 = 1_000;

/// The clients of the log that is in use.
#[derive(Clone)]
struct Clients {
    commands: Client,
    queries: Client,
}

/// Sends a command until it is answered with success, under the same key.
async fn insist(clients: watch::Receiver<Clients>, key: &str, path: &str, data: &Value) -> Answer {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < DEADLINE, "{path} never succeeds");
        let client = clients.borrow().commands.clone();
        match client.try_post(path, &[("idempotency-key", key)], data.clone()).await {
            Ok(answer) if answer.status == 503 => assert!(answer.header("retry-after").is_some(), "{answer:?}"),
            Ok(answer) => {
                assert_eq!(answer.status, 200, "{path}: {answer:?}");
                return answer;
            }
            Err(_) => {}
        }
        pause().await;
    }
}

/// An acknowledged command.
struct Acknowledged {
    path: String,
    data: Value,
    answer: Value,
}

/// Claims units of a sale and restocks a product, one after the other, and reads each with the answer's token.
fn keep_busy(
    clients: watch::Receiver<Clients>,
    mut ends: watch::Receiver<bool>,
) -> JoinHandle<BTreeMap<String, Acknowledged>> {
    tokio::spawn(async move {
        let (mut all, mut longest) = (BTreeMap::new(), Duration::ZERO);
        for round in 0.. {
            let claim = json!({ "customer": format!("c-{round}"), "quantity": 1, "order": format!("o-{round}") });
            let restock = json!({ "quantity": 1 });
            let product = format!("/v1/products/p-{}", round % 10);
            for (path, shown, data) in [
                ("/v1/sales/drop/claim".to_owned(), "/v1/sales/drop", claim),
                (format!("{product}/restock"), &product, restock),
            ] {
                let key = uuid::Uuid::now_v7().to_string();
                let sent = Instant::now();
                let answer = insist(clients.clone(), &key, &path, &data).await;
                longest = longest.max(sent.elapsed());
                let token = answer.token();
                all.insert(key, Acknowledged { path, data, answer: answer.json() });
                let queries = clients.borrow().queries.clone();
                let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
                let row = queries.get_with(shown, &fresh).await;
                // Commands are switched last, so a token never comes from a newer log than the views.
                assert_eq!(row.status, 200, "{row:?}");
            }
            if *ends.borrow_and_update() {
                println!("a command waited for at most {} ms", longest.as_millis());
                return all;
            }
        }
        all
    })
}

fn growth(from: &Shop, to: &Shop) -> Growth {
    let env = to.env([("EVENTS_PARTITIONS", to.partitions.to_string())]);
    Growth {
        kafka: KafkaSettings::from_env(&env).unwrap(),
        from: from.topic.clone(),
        to: command_api::config::topic(&env).unwrap(),
        exceptions: Arc::default(),
        postgres: Some(to.postgres_url.as_str().into()),
    }
}

/// Runs the tool and kills it a moment after it has said this.
async fn grow_until(growth: &Growth, text: &str) {
    let said = Notify::new();
    let tell = |line: String| {
        if line.contains(text) {
            said.notify_one();
        }
    };
    let heard = async {
        said.notified().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    tokio::select! {
        result = grow(growth, tell) => panic!("it ended before it said {text:?}: {result:?}"),
        () = heard => {}
    }
}

async fn history(queries: &Client, path: &str) -> Vec<Value> {
    let answer = queries.get(&format!("{path}/history")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json().as_array().unwrap().clone()
}

/// Every event that a reaction caused names one that is among these.
fn causes_are_among(events: &[Value]) {
    let mut count = 0;
    for event in events {
        let Some(cause) = event["cause"].as_str() else { continue };
        let (source, id) = match cause.split_once('.') {
            Some((log, id)) => (format!("/logs/{log}"), id),
            None => (event["source"].as_str().unwrap().to_owned(), cause),
        };
        let named = events.iter().filter(|other| other["id"] == id && other["source"] == source.as_str());
        assert_eq!(named.count(), 1, "{cause} of {event}");
        count += 1;
    }
    println!("{count} of {} events name their causes", events.len());
    assert!(count > 0);
}

async fn comes_to(queries: &Client, path: &str, fields: Value) {
    eventually(&format!("{path} comes to {fields}"), async || {
        let row = queries.get(path).await.json()["data"].take();
        fields.as_object().unwrap().iter().all(|(name, value)| row[name] == *value).then_some(())
    })
    .await;
}

/// Registers products, opens a sale, and places an order that will not be paid.
async fn open_shop(used: &watch::Receiver<Clients>, queries: &Client) {
    for n in 0..10 {
        let register = json!({ "name": "A", "price_cents": 500, "stock": STOCK });
        insist(used.clone(), &format!("register-{n}"), &format!("/v1/products/p-{n}/register"), &register).await;
    }
    let sale = json!({
        "product": "p-0", "opens_at": "2020-01-01T00:00:00Z", "closes_at": "2999-01-01T00:00:00Z",
        "price_cents": 300, "units": 900, "limit_per_customer": 1,
    });
    insist(used.clone(), "schedule", "/v1/sales/drop/schedule", &sale).await;
    comes_to(queries, "/v1/sales/drop", json!({ "status": "open" })).await;
    let place = json!({ "customer": "ann", "lines": [{ "product": "p-1", "quantity": 7, "amount_cents": 3500 }] });
    insist(used.clone(), "place", "/v1/orders/unpaid/place", &place).await;
    comes_to(queries, "/v1/orders/unpaid", json!({ "status": "confirmed" })).await;
}

/// Every acknowledged command is in the log once, and a repeat gets its first answer.
async fn are_taken_once(acknowledged: &BTreeMap<String, Acknowledged>, new: &Shop, commands: &Client) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    read_log(new).await.into_iter().for_each(|one| *counts.entry(one.command_id).or_default() += 1);
    for (key, one) in acknowledged {
        assert_eq!(counts.get(key), Some(&1), "{key} {}", one.path);
        let again = commands.post_with(&one.path, &[("idempotency-key", key)], one.data.clone()).await;
        assert_eq!(again.header("idempotent-replayed"), Some("true"), "{again:?}");
        let without_token = |mut answer: Value| {
            answer.as_object_mut().unwrap().remove("token");
            answer
        };
        assert_eq!(without_token(again.json()), without_token(one.answer.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_grows_under_load_and_nothing_is_lost_doubled_or_forgotten() {
    let (old, new) = (Shop::with_views(3).await, Shop::with_views(12).await);
    let command_api = old.command_api().await;
    let services = [old.projector().await, old.reactor(&command_api, PAYMENT_WINDOW_SECS).await, old.query_api().await];
    let clients = Clients { commands: command_api.client(), queries: services[2].client() };
    let (switch, used) = watch::channel(clients.clone());

    open_shop(&used, &clients.queries).await;
    old.sql("UPDATE checkpoints SET generation = 2, revision = revision + 1 WHERE view = 'product'").await;
    let (end, ends) = watch::channel(false);
    let busy = keep_busy(used.clone(), ends);

    // Killed before it has copied, and while it follows the log.
    let growth = growth(&old, &new);
    grow_until(&growth, "copying").await;
    grow_until(&growth, "waiting for the views").await;
    let early = new.start_command_api("0-11").await.failure().await;
    assert!(early.contains("is not a complete copy of the log"), "{early}");
    let past =
        (history(&clients.queries, "/v1/products/p-1").await, clients.queries.get("/v1/sales/drop").await.token());
    let projector = new.projector().await;
    // Killed while it closes the old log, which is not written any more then.
    grow_until(&growth, "closing").await;
    tokio::time::timeout(DEADLINE, grow(&growth, |line| println!("{line}"))).await.unwrap().unwrap();
    let closed = old.start_command_api("0-2").await.failure().await;
    assert!(closed.contains("the log was closed and continues in the topic"), "{closed}");

    let config = projector::Config::from_env(&new.env([])).unwrap();
    let former = old.postgres_url.as_str().into();
    let continued = projector::grown::continue_from(&config, &former, || ()).await.unwrap();
    assert!(continued.is_some_and(|continued| continued.deadlines > 0), "{continued:?}");
    assert_eq!(projector::grown::continue_from(&config, &former, || ()).await.unwrap(), None);
    let queries = new.query_api().await;
    switch.send_modify(|clients| clients.queries = queries.client());
    let commands = new.command_api().await;
    switch.send_modify(|clients| clients.commands = commands.client());
    let _reactor = new.reactor(&commands, PAYMENT_WINDOW_SECS).await;
    for _ in 0..50 {
        pause().await;
    }
    end.send_replace(true);
    let acknowledged = busy.await.unwrap();

    let (commands, queries) = (commands.client(), queries.client());
    let claims = acknowledged.values().filter(|one| one.path.ends_with("/claim")).count() as u64;
    println!("{} commands were acknowledged", acknowledged.len());
    // Unpaid orders of claims expire too, before and after the growth.
    eventually("every claim counts once, and takes or gives back its unit", async || {
        let row = queries.get("/v1/sales/drop").await.json()["data"].take();
        let [claimed, returned, left] = ["claimed", "returned", "left"].map(|name| row[name].as_u64().unwrap());
        assert_eq!(claimed + left, 900, "{row}");
        (claimed + returned == claims).then_some(())
    })
    .await;
    for one in acknowledged.values().filter(|one| one.path.ends_with("/claim")) {
        let order = format!("/v1/orders/{}", one.answer["order"].as_str().unwrap());
        eventually(&format!("{order} exists"), async || (queries.get(&order).await.status == 200).then_some(())).await;
    }
    comes_to(&queries, "/v1/orders/unpaid", json!({ "status": "expired" })).await;
    comes_to(&queries, "/v1/products/p-1", json!({ "reserved": 0 })).await;
    are_taken_once(&acknowledged, &new, &commands).await;

    let newer = commands.post("/v1/products/p-1/restock", json!({ "quantity": 1 })).await.token();
    for token in [past.1.clone(), format!("{},{newer}", past.1), newer] {
        let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
        let row = queries.get_with("/v1/products/p-1", &fresh).await;
        assert_eq!(row.status, 200, "{row:?}");
        assert!(row.header("etag").unwrap().ends_with("-2\""), "the generation went back: {row:?}");
    }
    let known = history(&queries, "/v1/products/p-1").await;
    causes_are_among(&[known.clone(), history(&queries, "/v1/orders/unpaid").await].concat());
    assert_eq!(known[..past.0.len()], past.0, "events are known by the positions that they had first");
    let report = projector::audit::audit(&config, None).await.unwrap();
    assert_eq!(report.differences, []);
    tokio::time::timeout(DEADLINE, grow(&growth, |_| ())).await.unwrap().unwrap();
    projector.stop().await;
}

/// Kills `cargo stack grow` and the copying tool, once the old log is closed.
async fn cut_off(stack: &Stack) {
    let mut command = stack.command(&["grow", "--partitions", "24"]);
    let mut grow = command.process_group(0).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(grow.stdout.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().expect("the copy is completed").starts_with("the copy was complete") {}
    let group = format!("-{}", grow.id().unwrap());
    let killed = std::process::Command::new("kill").args(["-KILL", "--", &group]).status();
    assert!(killed.is_ok_and(|status| status.success()));
    grow.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growth_that_was_cut_off_behind_the_closing_is_finished_by_the_next_start() {
    const ONE_OF_EACH: [&str; 6] = ["--command-apis", "1", "--query-apis", "1", "--projectors", "1"];
    let stack = Stack::up_with(&ONE_OF_EACH).await;
    let client = stack.client();
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    client.post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
    cut_off(&stack).await;
    stack.tell(&["down"]).await;

    let up = stack.told(&[&["up", "--detach", "--as-built"], &ONE_OF_EACH[..]].concat()).await;
    assert!(up.contains("The log was closed to grow to 24 partitions"), "{up}");
    let restocked = client.post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
    let token = restocked.accepted(&["product.restocked.v1"]).token();
    let row = client.get_with("/v1/products/cd", &[("consistency-token", &token)]).await;
    assert_eq!(row.json()["data"]["stock"], 2, "{row:?}");
    let audit = stack.told(&["audit"]).await;
    assert!(audit.contains("differences  0"), "{audit}");
}
