//! Takeovers of partitions whose recent or entire log is missing from the journal.

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
/// Time between two records of a tail, so that few keys are within the window at a time.
const PACE_MS: u64 = 1_000;
/// Upper bound for reading two million records with an unoptimized build.
const READS_FOR: Duration = Duration::from_secs(600);
/// Time for which loads of states are blocked. The records read in this time would not fit into memory.
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
    eventually("readyz names the wait for Postgres", async || {
        let told = service.admin_client().get("/readyz").await.text;
        told.contains("partition 0 waits for Postgres: there is no checkpoint, and 100001 records").then_some(())
    })
    .await;
    assert!(!service.readiness.is_ready());
    postgres.restore().await;
    service.wait_ready().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    service.client().post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
}

/// Products that are restocked repeatedly by an owner that does not exist.
struct Restocks {
    /// Each product with its version.
    versions: Vec<(String, u64)>,
    at: TimeMs,
}

impl Restocks {
    /// Appends `count` restocks to a partition.
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
                origin: None,
            })
            .encode(&mut value);
            (aggregate, value)
        });
        append_values(shop, partition, &commits.collect::<Vec<_>>()).await;
    }
}

/// Starts an owner of every partition. If `late`, loads of states are blocked for a while.
async fn take_over(shop: &Shop, late: bool) -> CommandProcess {
    let (postgres, connection) = tokio_postgres::connect(&shop.postgres_url, NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    if late {
        postgres.batch_execute("BEGIN; LOCK TABLE state_snapshots IN ACCESS EXCLUSIVE MODE").await.unwrap();
    }
    let owner = CommandProcess::spawn(shop, &[("STATE_MAX_MIB", "128")]);
    if late {
        eventually("the owner stops reading at its memory limit", async || {
            let told = owner.admin_client().try_get("/readyz").await.ok()?.text;
            told.contains("8 MiB of events wait for the states of their aggregates").then_some(())
        })
        .await;
        // Time in which it would read on.
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
    /// The first tail is as long as the data that a Kafka client fetches ahead.
    const TAILS: [usize; 2] = [150_000, 800_000];
    let shop = Shop::with_views(PARTITIONS).await;
    let (projector, service) = (shop.projector().await, shop.command_api().await);
    let products: Vec<_> = (0..100).map(|n| format!("cd-{n}")).collect();
    let product = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    let lines: Vec<_> = products.iter().map(|id| batch_line("products", id, "register", product.clone())).collect();
    assert!(service.client().batch(&lines).await.iter().all(|answer| answer["status"] == 200));
    eventually("the journal has the registrations", async || {
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
        tokio::time::timeout(READS_FOR, is_read).await.expect("the owner is ready");
        peaks.push(taken_over.peak_kib() / 1024);
        last = Some(taken_over);
    }
    // Written directly, because the test harness captures `println!`.
    writeln!(
        std::io::stderr(),
        "with tails of {TAILS:?} records in each of {PARTITIONS} partitions peak memory was {peaks:?} MiB"
    )
    .unwrap();
    assert!(peaks[1] < peaks[0] + 60, "{peaks:?} MiB");

    // The test's commands are later than all tails, whose keys would be remembered after them.
    let restock = last.unwrap().client().post("/v1/products/cd-0/restock", json!({ "quantity": 1 })).await;
    let versions = &restocks[partition(AggregateType::Product, "cd-0", PARTITIONS) as usize].versions;
    let (_, version) = versions.iter().find(|(id, _)| id == "cd-0").unwrap();
    assert_eq!(restock.accepted(&["product.restocked.v1"]).header("etag"), Some(&*format!("\"{}\"", version + 1)));
}
