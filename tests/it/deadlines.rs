//! Deadlines: a large number costs nothing until they are due, and each takes effect once, even if it fires repeatedly
//! or on several reactors.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_postgres::NoTls;

use crate::fixture::{Client, Heard, ProjectorProcess, Service, Shop, Step, Tripwire, eventually};

const LEASE: &str = include_str!("../../projector/src/reactor/lease_deadlines.sql");
const END: &str = include_str!("../../projector/src/reactor/end_deadlines.sql");
/// Upper bound of Postgres pages, 8 KiB each.
const FEW_PAGES: u64 = 20;

/// A shop with all services except a reactor.
struct Stage {
    shop: Shop,
    command_api: Service,
    commands: Client,
    queries: Client,
    _services: [Service; 2],
}

impl Stage {
    async fn new() -> Self {
        let shop = Shop::with_views(1).await;
        let command_api = shop.command_api().await;
        let services = [shop.projector().await, shop.query_api().await];
        let (commands, queries) = (command_api.client(), services[1].client());
        let stage = Self { shop, command_api, commands, queries, _services: services };
        let data = json!({ "name": "cd", "price_cents": 500, "stock": 9 });
        stage.commands.post("/v1/products/cd/register", data).await.accepted(&["product.registered.v1"]);
        stage
    }

    async fn place(&self, order: &str) {
        let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 500 }]);
        let data = json!({ "customer": "ann", "lines": lines });
        self.commands.post(&format!("/v1/orders/{order}/place"), data).await.accepted(&["order.placed.v1"]);
    }

    /// Waits until the order has this status and returns the token of the answer.
    async fn comes_to(&self, order: &str, status: &str) -> String {
        eventually(&format!("{order} is {status}"), async || {
            let answer = self.queries.get(&format!("/v1/orders/{order}")).await;
            (answer.json()["data"]["status"] == status).then(|| answer.token())
        })
        .await
    }

    /// Makes the order's deadline due now, by the clock of Postgres.
    async fn is_due(&self, order: &str) {
        let moved = format!(
            "WITH moved AS (UPDATE deadlines SET due_at = now() WHERE aggregate = 'order/{order}' RETURNING 1)
             SELECT count(*) FROM moved"
        );
        eventually("the order's deadline is set", async || (self.shop.sql(&moved).await == Some(1)).then_some(()))
            .await;
    }

    async fn count(&self, of: &str) -> i64 {
        self.shop.sql(&format!("SELECT count(*) FROM {of}")).await.unwrap()
    }

    async fn nothing_is_due(&self) {
        let due = "deadlines WHERE due_at <= now()";
        eventually("no due deadline is left", async || (self.count(due).await == 0).then_some(())).await;
    }

    /// Asserts that the order expired once and released its units once.
    async fn expired_once(&self, order: &str) {
        let of = |event: &str| format!("journal WHERE type LIKE '{event}.%'");
        let expired = format!("{} AND aggregate = 'order/{order}'", of("order.expired"));
        let released = format!("{} AND data ->> 'order' = '{order}'", of("product.released"));
        eventually("the units are released", async || (self.count(&released).await > 0).then_some(())).await;
        assert_eq!((self.count(&expired).await, self.count(&released).await), (1, 1));
    }
}

/// Returns the number of pages that the statement touches, and its plan.
async fn pages(shop: &Shop, statement: &str) -> (u64, String) {
    let (client, connection) = tokio_postgres::connect(&shop.postgres_url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}");
    let rows = client.query(&explain, &[]).await.unwrap();
    let plan = rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n");
    // The first such line is that of the whole plan.
    let whole = plan.lines().find_map(|line| line.trim().strip_prefix("Buffers: shared ")).unwrap_or_default();
    let of = |part: &str| part.split_once('=').and_then(|(_, pages)| pages.parse::<u64>().ok()).unwrap_or_default();
    (whole.split(' ').filter(|part| part.starts_with("hit") || part.starts_with("read")).map(of).sum(), plan)
}

#[tokio::test]
async fn a_million_deadlines_that_are_not_due_cost_a_look_at_an_index_and_delay_none_that_is() {
    let stage = Stage::new().await;
    let shop = &stage.shop;
    shop.sql(
        "INSERT INTO deadlines (kind, aggregate, due_at, cause)
         SELECT 'expire-order', 'order/later-' || n, now() + interval '1 day' + n * interval '1 ms', '0-0-1'
         FROM generate_series(1, 1000000) AS n",
    )
    .await;
    let lease = LEASE.replace("$1", "1000").replace("$2", "10000");
    for is_analyzed in [false, true] {
        if is_analyzed {
            shop.sql("ANALYZE deadlines").await;
        }
        let (pages, plan) = pages(shop, &lease).await;
        assert!(plan.contains("Index Scan using deadlines_due_at"), "{plan}");
        assert!(pages <= FEW_PAGES, "{pages} pages:\n{plan}");
    }

    let _reactor = shop.reactor(&stage.command_api, 600).await;
    let mut delays = Vec::new();
    for order in (1..=10).map(|number| format!("o-{number}")) {
        stage.place(&order).await;
        stage.comes_to(&order, "confirmed").await;
        stage.is_due(&order).await;
        let begun = Instant::now();
        stage.comes_to(&order, "expired").await;
        delays.push(begun.elapsed());
        stage.expired_once(&order).await;
        // A slow attempt on a busy machine proves nothing.
        if delays.last() < Some(&Duration::from_secs(1)) {
            break;
        }
    }
    assert!(delays.last() < Some(&Duration::from_secs(1)), "{delays:?}");
    stage.nothing_is_due().await;
    assert_eq!(stage.count("deadlines").await, 1_000_000);
}

#[tokio::test]
async fn a_deadline_that_is_set_again_after_it_fired_has_no_other_effect() {
    let stage = Stage::new().await;
    let _reactor = stage.shop.reactor(&stage.command_api, 600).await;
    for order in ["late", "paid"] {
        stage.place(order).await;
        stage.comes_to(order, "confirmed").await;
    }
    let data = json!({ "payment": "p", "amount_cents": 500 });
    stage.commands.post("/v1/orders/paid/pay", data).await.accepted(&["order.paid.v2"]);
    stage.is_due("late").await;
    stage.comes_to("late", "expired").await;
    stage.nothing_is_due().await;
    for _ in 0..2 {
        let again = "INSERT INTO deadlines (kind, aggregate, due_at, cause)
             SELECT 'expire-order', 'order/' || name, now(), '0-0-1' FROM unnest(ARRAY['late', 'paid']) AS name
             ON CONFLICT DO NOTHING";
        stage.shop.sql(again).await;
        stage.nothing_is_due().await;
    }
    stage.expired_once("late").await;
    assert_eq!(stage.count("journal WHERE type LIKE 'order.expired.%'").await, 1);
    stage.comes_to("paid", "paid").await;
}

/// Stops a reactor that has leased a deadline when it sends these words, lets another one fire the deadline, and
/// continues the first.
async fn stopped(words: &'static [u8], wires: impl AsyncFnOnce(&mut Shop, &mut String) -> Tripwire) {
    let stage = Stage::new().await;
    let (mut seen, mut url) = (stage.shop.clone(), format!("http://{}", stage.command_api.internal_addr()));
    let wire = wires(&mut seen, &mut url).await;
    let first = ProjectorProcess::reactor(&seen, &url).await;
    stage.place("o").await;
    let confirmed = stage.comes_to("o", "confirmed").await;
    stage.queries.is_stored(&confirmed).await;
    // Otherwise the second reactor would read the order's events again and set its deadline to the original time.
    let written = "checkpoints WHERE view = 'reactor' AND next_offset > (SELECT max(\"offset\") FROM journal)";
    eventually("the reactor has stored its checkpoint", async || (stage.count(written).await == 1).then_some(())).await;
    wire.arm(Step { words, heard: Heard::Nothing }, first.pid());
    stage.is_due("o").await;
    tokio::time::timeout(crate::fixture::DEADLINE, wire.tripped()).await.expect("the reactor reaches this step");
    // The reactor either holds the lease or is deleting the deadline because the order has expired. Postgres ends a
    // transaction that is idle while storing the checkpoint after 3 s.
    assert_eq!(stage.count("deadlines WHERE leased_until <= now()").await, 0);
    let locked = "SELECT (SELECT count(*) FROM deadlines)
             - (SELECT count(*) FROM (SELECT 1 FROM deadlines FOR UPDATE SKIP LOCKED) AS free)";
    eventually("nothing is locked", async || (stage.shop.sql(locked).await == Some(0)).then_some(())).await;
    let second = stage.shop.reactor(&stage.command_api, 600).await;
    eventually("the second reactor fires the deadline", async || (stage.count("deadlines").await == 0).then_some(()))
        .await;
    stage.comes_to("o", "expired").await;
    first.wake();
    // A further order shows that the first reactor is at work again, or that the second one does its work.
    stage.place("next").await;
    stage.comes_to("next", "confirmed").await;
    stage.is_due("next").await;
    stage.comes_to("next", "expired").await;
    for order in ["o", "next"] {
        stage.expired_once(order).await;
    }
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reactor_that_stops_before_its_command_is_sent_holds_no_lock_and_its_command_comes_late_to_no_effect() {
    stopped(br#""command":"expire""#, async |_, url| Tripwire::in_url(url).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reactor_that_stops_between_the_effect_and_its_record_holds_no_lock_and_does_no_harm_later() {
    stopped(END.as_bytes(), async |shop, _| Tripwire::in_url(&mut shop.postgres_url).await).await;
}
