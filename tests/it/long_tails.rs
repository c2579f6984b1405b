//! Take-overs of partitions of which the journal has nothing, or not the last night.

use std::io::Write;
use std::time::Duration;

use domain::TimeMs;
use domain::product::Event;
use schemas::aggregate::{AggregateType, partition};
use schemas::events::WireEvent;
use schemas::record::{Claim, Commit, Epoch, Fence, Record};
use serde_json::json;
use tokio_postgres::NoTls;

use crate::fixture::{CommandProcess, Proxy, Shop, append_all, append_values, batch_line, eventually, pause};

const NONCE: u64 = 7;
/// From one record of a tail to the next: few keys are remembered at a time.
const PACE_MS: u64 = 1_000;
/// Two million records are read by a build that is not optimized.
const READS_FOR: Duration = Duration::from_secs(600);
/// How long states are late. As many records as are read in this time would not fit.
const LATE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_long_log_waits_for_a_postgres_that_comes_late() {
    const FENCES: u64 = 100_000;
    let mut shop = Shop::with_views(1).await;
    let postgres = Proxy::in_url(&mut shop.postgres_url).await;
    append_all(
        &shop,
        0,
        &[(String::new(), Record::Claim(Claim { nonce: NONCE, url: "http://127.0.0.1:1".into(), partitions: None }))],
    )
    .await;
    let epoch = Epoch { claim: 0, nonce: NONCE };
    let fences = (1..=FENCES).map(|seq| {
        let mut value = Vec::new();
        Record::Fence(Fence { epoch, seq }).encode(&mut value);
        (String::new(), value)
    });
    append_values(&shop, 0, &fences.collect::<Vec<_>>()).await;

    let service = shop.start_command_api("0").await;
    eventually("it says what it waits for", async || {
        let told = service.admin_client().get("/readyz").await.text;
        told.contains("partition 0 waits for Postgres: it tells no checkpoint, and 100001 records").then_some(())
    })
    .await;
    assert!(!service.readiness.is_ready());
    postgres.restore().await;
    service.wait_ready().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    service.client().post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
}

/// Products that are restocked again and again, by an owner that nobody hears of.
struct Restocks {
    /// Of each product, the version.
    versions: Vec<(String, u64)>,
    at: TimeMs,
}

impl Restocks {
    /// In one partition.
    async fn append(&mut self, shop: &Shop, partition: u32, count: usize) {
        let claim = Record::Claim(Claim { nonce: NONCE, url: "http://127.0.0.1:1".into(), partitions: None });
        let claim = append_all(shop, partition, &[(String::new(), claim)]).await[0];
        let products = self.versions.len();
        let commits = (1..).zip((0..products).cycle()).take(count).map(|(seq, product)| {
            let (id, version) = &mut self.versions[product];
            *version += 1;
            self.at.0 += PACE_MS;
            let aggregate = format!("product/{id}");
            let restocked = domain::Event::Product(Event::Restocked { quantity: 1 });
            let mut value = Vec::new();
            Record::Commit(Commit {
                epoch: Epoch { claim, nonce: NONCE },
                seq,
                command_id: format!("tail-{claim}-{seq}").into(),
                at_ms: self.at.0,
                aggregate: aggregate.clone().into(),
                version: *version,
                events: vec![WireEvent::newest(&restocked)],
                fingerprint: 0,
                cause: None,
                trace: None,
            })
            .encode(&mut value);
            (aggregate, value)
        });
        append_values(shop, partition, &commits.collect::<Vec<_>>()).await;
    }
}

/// Starts an owner of everything, which gets no states for a while where they are `late`.
async fn take_over(shop: &Shop, late: bool) -> CommandProcess {
    let (postgres, connection) = tokio_postgres::connect(&shop.postgres_url, NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    if late {
        postgres.batch_execute("BEGIN; LOCK TABLE state_snapshots IN ACCESS EXCLUSIVE MODE").await.unwrap();
    }
    let owner = CommandProcess::spawn(shop, &[("STATE_MAX_MIB", "128")]);
    if late {
        eventually("it reads no further than it has room without states", async || {
            let told = owner.admin_client().try_get("/readyz").await.ok()?.text;
            told.contains("8 MiB of events wait for the states of their aggregates").then_some(())
        })
        .await;
        // What it would read on for.
        tokio::time::sleep(LATE).await;
    }
    drop(postgres);
    connection.await.unwrap().unwrap();
    owner
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: it measures memory over a tail of two million records"]
async fn a_take_over_takes_no_more_memory_for_a_longer_tail() {
    const PARTITIONS: u32 = 2;
    /// The first is as long as what a client of Kafka fetches ahead.
    const TAILS: [usize; 2] = [150_000, 800_000];
    let shop = Shop::with_views(PARTITIONS).await;
    let (projector, service) = (shop.projector().await, shop.command_api().await);
    let products: Vec<_> = (0..100).map(|n| format!("cd-{n}")).collect();
    let product = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    let lines: Vec<_> = products.iter().map(|id| batch_line("products", id, "register", product.clone())).collect();
    assert!(service.client().batch(&lines).await.iter().all(|answer| answer["status"] == 200));
    eventually("the journal has them", async || {
        (shop.sql("SELECT count(*) FROM journal").await == Some(100)).then_some(())
    })
    .await;
    projector.stop().await;
    service.stop().await;

    let is_in = |id: &String, wanted| partition(AggregateType::Product, id, PARTITIONS) == wanted;
    let mut restocks: Vec<_> = (0..PARTITIONS)
        .map(|partition| Restocks {
            versions: products.iter().filter(|id| is_in(id, partition)).map(|id| (id.clone(), 1)).collect(),
            at: TimeMs(0),
        })
        .collect();
    let (mut peaks, mut last) = (Vec::new(), None);
    for (tail, states_are_late) in TAILS.into_iter().zip([false, true]) {
        for (partition, restocks) in (0..).zip(&mut restocks) {
            restocks.append(&shop, partition, tail).await;
        }
        let taken_over = take_over(&shop, states_are_late).await;
        let is_read = async {
            while !taken_over.is_ready().await {
                pause().await;
            }
        };
        tokio::time::timeout(READS_FOR, is_read).await.expect("it is ready");
        peaks.push(taken_over.peak_kib() / 1024);
        last = Some(taken_over);
    }
    // Past what tests capture.
    writeln!(
        std::io::stderr(),
        "with tails of {TAILS:?} records in each of {PARTITIONS} partitions it held at most {peaks:?} MiB"
    )
    .unwrap();
    assert!(peaks[1] < peaks[0] + 60, "{peaks:?} MiB");

    // Its time is after that of all tails, whose keys would be remembered behind it.
    let restock = last.unwrap().client().post("/v1/products/cd-0/restock", json!({ "quantity": 1 })).await;
    let versions = &restocks[partition(AggregateType::Product, "cd-0", PARTITIONS) as usize].versions;
    let (_, version) = versions.iter().find(|(id, _)| id == "cd-0").unwrap();
    assert_eq!(restock.accepted(&["product.restocked.v1"]).header("etag"), Some(&*format!("\"{}\"", version + 1)));
}
