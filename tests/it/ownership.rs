//! Partitions and their owners: every instance honors what another one acknowledged.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::AggregateType;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use schemas::aggregate::AggregateId;
use schemas::record::{Claim, Record};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::fixture::{Load, SERVICE_TOKEN, Service, Shop, append, batch_line, eventually, pause, prove, read_log};

fn restock() -> Value {
    json!({ "quantity": 1 })
}

fn record() -> Value {
    json!({ "name": "A", "price_cents": 1, "stock": 1 })
}

#[tokio::test]
async fn a_command_for_another_instances_partition_is_answered_by_its_owner() {
    let shop = Shop::new(4).await;
    let first = shop.start_command_api("0-1").await;
    let second = shop.start_command_api("2-3").await;
    first.wait_ready().await;
    second.wait_ready().await;
    for n in 0..16 {
        let path = format!("/v1/products/cd-{n}/register");
        let key = [("idempotency-key", "k")];
        // Owners become known as their claims are read.
        let answer = eventually("the owner is found", async || {
            Some(first.client().post_with(&path, &key, record()).await).filter(|answer| answer.status != 503)
        });
        let answer = answer.await.accepted(&["product.registered.v1"]);
        let again = second.client().post_with(&path, &key, record()).await;
        assert_eq!(again.json(), answer.json());
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
    }
    let partitions: std::collections::BTreeSet<_> =
        read_log(&shop).await.iter().map(|commit| commit.partition).collect();
    assert_eq!(partitions.len(), 4, "sixteen aggregates should hit every partition");
}

#[tokio::test]
async fn without_an_owner_a_command_is_refused_and_may_be_sent_again() {
    let shop = Shop::new(2).await;
    let only_one = shop.command_api_for("0").await;
    let mut refused = 0;
    for n in 0..8 {
        let path = format!("/v1/products/cd-{n}/register");
        let answer = only_one.client().post_with(&path, &[("prefer", "wait=1")], record()).await;
        if answer.status == 503 {
            refused += 1;
            assert!(answer.header("retry-after").is_some() && answer.header("idempotency-key").is_some(), "{answer:?}");
        }
    }
    assert!(refused > 0, "eight aggregates should hit both partitions");
    let other = shop.command_api_for("1").await;
    for n in 0..8 {
        let path = format!("/v1/products/cd-{n}/register");
        eventually("the new owner is found", async || {
            Some(only_one.client().post(&path, record()).await).filter(|answer| answer.status == 200)
        })
        .await;
    }
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_for_a_partition_that_is_away_leave_room_for_those_of_others() {
    /// More than an instance admits at once.
    const CLIENTS: usize = 2_500;
    let shop = Shop::new(2).await;
    let here = shop.command_api_for("0").await;
    let (link, other) = shop.behind_a_proxy([("PARTITIONS", "1".to_owned())]).await;
    let path = |wanted| {
        let mut ids = (0..).map(|n| format!("cd-{n}"));
        let of = |id: &String| schemas::aggregate::partition(AggregateType::Product, id, 2) == wanted;
        format!("/v1/products/{}", ids.find(of).unwrap())
    };
    let (near, far) = (path(0), path(1));
    here.client().post(&format!("{near}/register"), record()).await.accepted(&["product.registered.v1"]);
    eventually("the owner is found", async || {
        let answer = here.client().post(&format!("{far}/register"), record()).await;
        (answer.status == 200).then_some(())
    })
    .await;

    link.freeze();
    let mut background = JoinSet::new();
    // The owner stays active, so its partition is not taken over.
    let (client, path) = (other.client(), format!("{far}/restock"));
    background.spawn(async move {
        loop {
            client.post(&path, restock()).await.accepted(&["product.restocked.v1"]);
            pause().await;
        }
    });
    let (client, path, refused) = (here.client(), format!("{far}/restock"), Arc::new(AtomicUsize::new(0)));
    let counter = refused.clone();
    background.spawn(async move {
        let again = async || {
            loop {
                assert_eq!(client.post(&path, restock()).await.status, 503);
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        (0..CLIENTS).map(|_| again()).collect::<FuturesUnordered<_>>().collect::<()>().await;
    });
    let (client, path) = (here.client(), format!("{near}/restock"));
    eventually("the crowd has arrived", async || (refused.load(Ordering::Relaxed) > 0).then_some(())).await;
    eventually("a command for the available partition is accepted", async || {
        (client.post(&path, restock()).await.status == 200).then_some(())
    })
    .await;
    for _ in 0..50 {
        client.post(&path, restock()).await.accepted(&["product.restocked.v1"]);
        pause().await;
    }
}

#[tokio::test]
async fn an_instance_that_restarts_continues_versions_and_recognizes_repeats() {
    let shop = Shop::new(2).await;
    let key = [("idempotency-key", "k")];
    let first = shop.command_api().await;
    first.client().post("/v1/products/cd/register", record()).await.accepted(&["product.registered.v1"]);
    let before = first.client().post_with("/v1/products/cd/restock", &key, restock()).await;
    first.crash().await;
    let second = shop.command_api().await;
    let again = second.client().post_with("/v1/products/cd/restock", &key, restock()).await;
    assert_eq!((again.json(), again.header("idempotent-replayed")), (before.json(), Some("true")));
    let next = second.client().post("/v1/products/cd/restock", restock()).await;
    assert_eq!(next.accepted(&["product.restocked.v1"]).header("etag"), Some("\"3\""));
}

#[tokio::test]
async fn a_stop_in_the_middle_of_load_loses_nothing_that_was_acknowledged() {
    let shop = Shop::new(2).await;
    let service = shop.command_api().await;
    let load = Load::start(vec![service.client()]);
    load.answered(200).await;
    service.stop().await;
    prove(load.end().await, &read_log(&shop).await);
}

#[tokio::test]
async fn a_crash_in_the_middle_of_load_loses_nothing_that_was_acknowledged() {
    let shop = Shop::new(2).await;
    let service = shop.command_api().await;
    let load = Load::start(vec![service.client()]);
    load.answered(200).await;
    service.crash().await;
    prove(load.end().await, &read_log(&shop).await);
}

#[tokio::test]
async fn when_two_instances_claim_one_partition_nothing_is_lost_or_doubled_and_one_of_them_serves() {
    let shop = Shop::new(1).await;
    let first = shop.command_api().await;
    let load = Load::start(vec![first.client()]);
    load.answered(100).await;
    let second = shop.start_command_api("0").await;
    eventually("one of the two instances serves", async || {
        let answer = second.client().post("/v1/products/late/register", record()).await;
        Some(answer).filter(|answer| answer.status == 200)
    })
    .await;
    prove(load.end().await, &read_log(&shop).await);
}

#[tokio::test]
async fn instances_come_and_go_under_load_and_no_command_fails() {
    let shop = Shop::new(6).await;
    let first = shop.member().await;
    let load = Load::start(vec![first.client()]);
    load.answered(100).await;
    let second = shop.member().await;
    let third = shop.member().await;
    load.answered(200).await;
    second.stop().await;
    load.answered(200).await;
    third.stop().await;
    load.answered(200).await;
    assert_eq!(load.refused(), 0, "commands failed while a partition moved");
    prove(load.end().await, &read_log(&shop).await);
}

#[tokio::test]
async fn when_an_instance_dies_another_one_takes_over_and_commands_wait_for_it() {
    let shop = Shop::new(6).await;
    let survivor = shop.member().await;
    let victim = shop.member().await;
    let load = Load::start(vec![survivor.client()]);
    load.answered(200).await;
    victim.crash().await;
    load.answered(200).await;
    assert_eq!(load.refused(), 0, "commands failed before the owner was known to be dead");
    prove(load.end().await, &read_log(&shop).await);
}

/// Serves a build whose peer link has another version, on a port of `host`. It answers every request with 404. Returns
/// its URL and everything that it receives.
async fn another_build(host: &str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let (url, heard) = (format!("http://{}", listener.local_addr().unwrap()), Arc::<Mutex<Vec<String>>>::default());
    let told = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let mut all = Vec::new();
            while !all.ends_with(b"\r\n\r\n") && peer.read_buf(&mut all).await.is_ok_and(|read| read > 0) {}
            peer.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            let _ = peer.read_to_end(&mut all).await;
            told.lock().unwrap().push(String::from_utf8_lossy(&all).into_owned());
        }
    });
    (url, heard)
}

#[tokio::test]
async fn builds_whose_links_differ_in_their_form_pass_each_other_no_commands() {
    let shop = Shop::new(2).await;
    let (url, heard) = another_build("127.0.0.1").await;
    append(&shop, 0, "", &Record::Claim(Claim { nonce: 7, url: url.into(), partitions: None })).await;
    let service = shop.command_api_for("1").await;
    let is_there = |id: &String| AggregateId::new(AggregateType::Product, id).unwrap().partition(2) == 0;
    let id = (0..).map(|n| format!("cd-{n}")).find(is_there).unwrap();
    let path = format!("/v1/products/{id}/register");
    // A line is sent once and may be retried.
    let answers = service.client().batch(&[batch_line("products", &id, "register", record())]).await;
    assert_eq!((&answers[0]["status"], &answers[0]["type"]), (&json!(503), &json!("/problems/no-owner")));
    let heard = eventually("the other build was asked", async || {
        Some(heard.lock().unwrap().clone()).filter(|heard| !heard.is_empty())
    });
    for request in heard.await {
        assert!(request.starts_with("GET /internal/link/3 HTTP/1.1\r\n") && request.ends_with("\r\n\r\n"), "{request}");
    }

    let bearer = format!("Bearer {SERVICE_TOKEN}");
    let get = async |path: &str| {
        let answer = service.internal_client().get_with(path, &[("authorization", &bearer)]).await;
        answer.status.as_u16()
    };
    for form in ["/internal/link", "/internal/link/2", "/internal/link/4"] {
        assert_eq!(get(form).await, 404, "{form}");
    }
    assert_ne!(get("/internal/link/3").await, 404);

    // The other build writes nothing to the log, so its partition is taken over and the retried command is accepted,
    // once.
    eventually("the partition has another owner", async || {
        (service.client().post(&path, record()).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(read_log(&shop).await.len(), 1);
}

/// Starts two owners, then appends claims that name an address on another host as the owner of their partitions.
/// Returns the requests that this address received.
async fn heard_by_a_stranger(allowed: Option<&str>) -> Vec<String> {
    let shop = Shop::new(2).await;
    let peers = |share: &str| {
        let allowed = allowed.map(|allowed| ("PEER_URLS", allowed.to_owned()));
        shop.write_env([("PARTITIONS", share.to_owned())].into_iter().chain(allowed))
    };
    let (first, second) = (Service::command_api(&peers("0")).await, Service::command_api(&peers("1")).await);
    first.wait_ready().await;
    second.wait_ready().await;
    let (url, heard) = another_build("127.0.0.2").await;
    for round in 0..3 {
        for partition in 0..2 {
            append(
                &shop,
                partition,
                "",
                &Record::Claim(Claim { nonce: 7, url: url.as_str().into(), partitions: None }),
            )
            .await;
        }
        // The deposed owners ask the address in the log for a handover; the others forward to it.
        for client in [first.client(), second.client()] {
            for n in 0..4 {
                client
                    .post_with(&format!("/v1/products/p-{round}-{n}/register"), &[("prefer", "wait=1")], record())
                    .await;
            }
        }
    }
    eventually("the claims are superseded", async || {
        for (client, n) in [first.client(), second.client()].iter().flat_map(|client| (0..4).map(move |n| (client, n)))
        {
            let answer = client.post(&format!("/v1/products/last-{n}/register"), record()).await;
            Some(answer.status).filter(|status| *status != 503)?;
        }
        Some(())
    })
    .await;
    for service in [&first, &second] {
        let metrics = service.admin_client().get("/metrics").await.text;
        assert_eq!(metrics.contains("\nstampede_peers_refused_total "), allowed.is_none(), "{metrics}");
    }
    heard.lock().unwrap().clone()
}

#[tokio::test]
async fn the_service_token_goes_to_no_address_that_only_the_log_names() {
    let heard = heard_by_a_stranger(None).await;
    assert!(heard.is_empty(), "{heard:?}");
    let heard = heard_by_a_stranger(Some("http://127.0.0.2:*,http://127.0.0.1:*")).await;
    assert!(heard.iter().any(|request| request.contains(SERVICE_TOKEN)), "an allowed peer was not asked");
}
