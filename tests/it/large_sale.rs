//! A sale with a very large number of claims: it is snapshotted, taken over and continued, and delays no other command.
//!
//! `CLAIMS=1000000 cargo stack test very_many_claims` prints the cost at a million claims.

use std::io::Write as _;
use std::time::{Duration, Instant};

use domain::ids::{CustomerId, OrderId, ProductId};
use domain::sale::{Event, Schedule};
use domain::{AggregateType, MAX_STATE_BYTES, State, TimeMs, evolve};
use schemas::events::WireEvent;
use schemas::record::{Claim, Commit, Epoch, Record};
use serde_json::{Value, json};

use crate::fixture::{Client, SERVICE_TOKEN, Service, Shop, append_all, append_values, batch_line, pause};

const CLAIMS: u32 = 20_000;
/// Number of claims in one request, small so that other commands get their turn.
const LINES: u32 = 500;
/// Upper bound on every wait, long enough for a million claims.
const PATIENCE: Duration = Duration::from_secs(300);

fn claim(number: u32) -> Value {
    let id = |kind: &str| format!("{kind}-{number:034}");
    json!({ "customer": id("c"), "quantity": 1, "order": id("o") })
}

/// Waits until the query returns at least this number.
async fn reaches(shop: &Shop, what: &str, least: i64) -> i64 {
    let tries = async {
        loop {
            match shop.sql(what).await {
                Some(number) if number >= least => return number,
                _ => pause().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.unwrap_or_else(|_| panic!("{what} does not reach {least}"))
}

/// Sends other commands to the same partition, one after the other, and records the longest wait of any of them in
/// `longest`.
async fn beside(commands: &Client, longest: &mut Duration) {
    for number in 0.. {
        let begun = Instant::now();
        let data = json!({ "order": format!("p-{number}"), "quantity": 1 });
        // Without this header a command is refused after a second, which a turn may take on a busy machine.
        let patient = [("prefer", "wait=25")];
        commands.post_with("/v1/products/cd/reserve", &patient, data).await.accepted(&["product.reserved.v2"]);
        *longest = begun.elapsed().max(*longest);
        pause().await;
    }
}

async fn schedule(commands: &Client, internal: &Client, units: u32) {
    let data = json!({ "name": "cd", "price_cents": 5, "stock": 1_000_000_000 });
    commands.post("/v1/products/cd/register", data).await.accepted(&["product.registered.v1"]);
    let data = json!({
        "product": "cd", "opens_at": "2020-01-01T00:00:00Z", "closes_at": "2999-01-01T00:00:00Z",
        "price_cents": 5, "units": units, "limit_per_customer": 1,
    });
    commands.post("/v1/sales/drop/schedule", data).await.accepted(&["sale.scheduled.v1"]);
    let bearer = [("authorization", &*format!("Bearer {SERVICE_TOKEN}"))];
    internal.post_with("/v1/sales/drop/stock", &bearer, json!({})).await.accepted(&["sale.stocked.v1"]);
}

async fn fill(commands: &Client, claims: u32) {
    for first in (0..claims).step_by(LINES as usize) {
        let numbers = first..(first + LINES).min(claims);
        let lines: Vec<_> = numbers.map(|number| batch_line("sales", "drop", "claim", claim(number))).collect();
        for answer in commands.batch(&lines).await {
            assert_eq!(answer["status"], 200, "{answer}");
        }
    }
}

/// Sends the claim under one key until it is answered, as a buyer does.
async fn claim_until_accepted(commands: &Client, claim: Value) {
    let key = [("idempotency-key", "after")];
    let tries = async {
        while commands.post_with("/v1/sales/drop/claim", &key, claim.clone()).await.status == 503 {
            pause().await;
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.expect("the claim is answered in time");
    commands.post_with("/v1/sales/drop/claim", &key, claim.clone()).await.accepted(&["sale.claimed.v1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_of_very_many_claims_is_kept_and_taken_over_and_goes_on() {
    let claims = std::env::var("CLAIMS").map_or(CLAIMS, |claims| claims.parse().unwrap());
    let shop = Shop::with_views(1).await;
    let command_api = shop.command_api().await;
    let _projector: Service = shop.projector().await;
    let commands = command_api.client();
    schedule(&commands, &command_api.internal_client(), claims + 2).await;

    let begun = Instant::now();
    let mut waited = Duration::ZERO;
    tokio::select! {
        () = fill(&commands, claims) => {}
        () = beside(&commands, &mut waited) => {}
    }
    let filled = begun.elapsed();

    let begun = Instant::now();
    let journal = "SELECT max(version) FROM journal WHERE aggregate = 'sale/drop'";
    reaches(&shop, journal, i64::from(claims) + 2).await;
    // A new snapshot is written when about as many events have happened since the last one as it holds.
    let kept = "SELECT version FROM state_snapshots WHERE aggregate = 'sale/drop'";
    let version = reaches(&shop, kept, i64::from(claims) / 4).await;
    let followed = begun.elapsed();
    let bytes =
        shop.sql("SELECT length(state)::bigint FROM state_snapshots WHERE aggregate = 'sale/drop'").await.unwrap();

    command_api.crash().await;
    let begun = Instant::now();
    let command_api = shop.command_api().await;
    let commands = command_api.client();
    claim_until_accepted(&commands, claim(claims)).await;
    let taken_over = begun.elapsed();
    commands.post("/v1/sales/drop/claim", claim(0)).await.accepted(&[]);
    let over = json!({ "customer": claim(0)["customer"], "quantity": 1, "order": "another" });
    commands.post("/v1/sales/drop/claim", over).await.rejected("over_limit");
    // Written directly, because the test harness captures `println!`.
    writeln!(
        std::io::stderr(),
        "{claims} claims in {filled:?}, longest wait of other commands {waited:?}; the views followed {followed:?} \
         later, snapshot at version {version} in {bytes} bytes; taken over in {taken_over:?}"
    )
    .unwrap();
}

/// Returns the events of a sale that is claimed until its state has the maximum size.
fn events_that_fill_a_sale() -> Vec<domain::Event> {
    let mut state = State::initial(AggregateType::Sale);
    let schedule = Schedule {
        product: ProductId("cd".into()),
        opens_at: TimeMs(0),
        closes_at: TimeMs(u64::MAX / 2),
        price_cents: 5,
        units: u32::MAX,
        limit_per_customer: 1,
    };
    let begun = [Event::Scheduled(schedule), Event::Stocked];
    let claims = (0..).map(|number: u32| Event::Claimed {
        order: OrderId(format!("drop~o-{number}").into()),
        customer: CustomerId(format!("c-{number}").into()),
        quantity: 1,
        product: ProductId("cd".into()),
        amount_cents: 5,
        is_first: true,
        is_ordered: false,
    });
    let mut events = Vec::new();
    for event in begun.into_iter().chain(claims).map(domain::Event::Sale) {
        if state.heap_bytes() >= MAX_STATE_BYTES {
            break;
        }
        state = evolve(state, &event);
        events.push(event);
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "second gate: it reads a sale of 800,000 claims"]
async fn a_sale_of_the_largest_size_takes_no_claim_more_until_one_is_returned() {
    const NONCE: u64 = 7;
    const OF_A_RECORD: usize = 2_000;
    let shop = Shop::with_views(1).await;
    let claimed = Record::Claim(Claim { nonce: NONCE, url: "http://127.0.0.1:1".into(), partitions: None });
    let epoch = Epoch { claim: append_all(&shop, 0, &[(String::new(), claimed)]).await[0], nonce: NONCE };
    let events = events_that_fill_a_sale();
    let mut records = Vec::new();
    for (seq, events) in (1..).zip(events.chunks(OF_A_RECORD)) {
        let mut value = Vec::new();
        Record::Commit(Commit {
            epoch,
            seq,
            command_id: format!("fill-{seq}").into(),
            at_ms: seq,
            aggregate: "sale/drop".into(),
            version: (records.len() * OF_A_RECORD + events.len()) as u64,
            events: events.iter().map(WireEvent::newest).collect(),
            fingerprint: 0,
            cause: None,
            trace: None,
            origin: None,
        })
        .encode(&mut value);
        records.push((String::from("sale/drop"), value));
    }
    // A producer buffers no more at a time.
    for some in records.chunks(20) {
        append_values(&shop, 0, some).await;
    }

    let service = shop.start_command_api("0").await;
    let ready = async {
        while !service.readiness.is_ready() {
            pause().await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("command-api reads the whole log");
    let commands = service.client();
    let claim =
        |number: &str| json!({ "customer": format!("c-{number}"), "quantity": 1, "order": format!("o-{number}") });
    let url = "/v1/sales/drop/claim";
    commands.post(url, claim("new")).await.rejected("aggregate_full");
    commands.post(url, claim("0")).await.accepted(&[]);
    let metrics = service.admin_client().get("/metrics").await.text;
    let largest = metrics.lines().find_map(|line| line.strip_prefix("stampede_largest_state_bytes{partition=\"0\"} "));
    assert!(largest.unwrap().parse::<usize>().unwrap() >= MAX_STATE_BYTES, "{largest:?}");

    service.caused("sales", "drop", "return", json!({ "order": "drop~o-1" })).await;
    commands.post(url, claim("new")).await.accepted(&["sale.claimed.v1"]);
    commands.post(url, claim("newer")).await.rejected("aggregate_full");
}
