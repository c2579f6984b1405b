//! One release replaces another, forward and back, while clients go on.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::adding::{Sources, fits_the_sources};
use crate::elastic::{ONE_OF_EACH, OpenLoop, Outcome, PRODUCTS, programs};
use crate::fixture::{Client, batch_line, eventually};
use crate::stack::{Stack, text};

/// Makes the next release: other states, a view with another fold, and a migration.
const NEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/upgrades/next.patch");
const FORM: i16 = schemas::snapshots::FORM + 1;
/// Number of restocks of each product before the upgrade, which make a history long enough for a snapshot.
const RESTOCKS: u32 = 300;
/// Time before a deployment from which its figures take the steady latency, and time after it.
const STEADY: Duration = Duration::from_secs(5);
/// Time for which each percentile is taken.
const WINDOW: Duration = Duration::from_secs(1);

/// A deployment under load.
struct Deployed {
    begun: Instant,
    /// Each line that it printed, with the time.
    lines: Vec<(Instant, String)>,
    outcomes: Vec<Outcome>,
}

impl Deployed {
    /// Deploys a build under load, and asserts that no request fails and that the views are right afterwards.
    async fn under_load(stack: &Stack, build: &str, options: &[&str]) -> Self {
        let load = OpenLoop::start(stack.client()).await;
        tokio::time::sleep(STEADY).await;
        let begun = Instant::now();
        let lines = deploy(stack, build, options).await;
        tokio::time::sleep(STEADY).await;
        let deployed = Self { begun, lines, outcomes: load.end().await };
        deployed.print(&format!("{build} {}", options.join(" ")));
        let audit = stack.command(&["audit", "--full"]).output().await.unwrap();
        assert!(audit.status.success() && text(&audit).contains("differences  0"), "{build}: {}", text(&audit));
        deployed
    }

    /// Returns the 99th percentile and the maximum of the waits of requests that began in a window.
    fn waits(&self, from: Instant, within: Duration) -> (Duration, Duration) {
        let is_in = |outcome: &&Outcome| outcome.begun >= from && outcome.begun < from + within;
        let mut waits: Vec<_> = self.outcomes.iter().filter(is_in).map(|outcome| outcome.waited).collect();
        waits.sort_unstable();
        let at = |share: usize| waits.get((waits.len() * share / 100).min(waits.len().saturating_sub(1)));
        (at(99).copied().unwrap_or_default(), at(100).copied().unwrap_or_default())
    }

    /// Prints each line, and for a move the longest wait in its duration and how long afterwards the 99th percentile was
    /// back. Written directly, because the test harness captures `println!`.
    fn print(&self, title: &str) {
        let steady = self.waits(self.begun - STEADY, STEADY).0;
        let whole = self.waits(self.begun, self.lines.last().unwrap().0 - self.begun);
        let mut report =
            format!("{title}\n  steady p99 {steady:.1?}; during: p99 {:.1?}, longest {:.1?}\n", whole.0, whole.1);
        let mut before = self.begun;
        for (at, line) in &self.lines {
            let longest = self.waits(before, *at - before).1;
            let is_back = |quarters: &u32| self.waits(*at + *quarters * WINDOW / 4, WINDOW).0 <= steady * 3 / 2;
            let back = (0..40).find(is_back).map_or("not within 10 s".to_owned(), |quarters| {
                format!("within {:.1} s", f64::from(quarters) / 4.0 + WINDOW.as_secs_f64())
            });
            let since = (*at - self.begun).as_secs_f64();
            report += &format!("  {since:>6.1} s  {line:<60} longest {longest:>8.1?}, p99 back {back}\n");
            before = *at;
        }
        std::io::stderr().write_all(report.as_bytes()).unwrap();
    }

    fn told(&self, part: &str) -> bool {
        self.lines.iter().any(|(_, line)| line.contains(part))
    }
}

/// Deploys a build and returns each line that was printed, with the time.
async fn deploy(stack: &Stack, build: &str, options: &[&str]) -> Vec<(Instant, String)> {
    let mut command = stack.command(&["deploy", build]);
    // The test's own variable would end a build of a revision at once.
    command.args(options).env("CARGO", "cargo").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut told, mut errors) = (BufReader::new(child.stdout.take().unwrap()).lines(), child.stderr.take().unwrap());
    let errors = tokio::spawn(async move {
        let mut text = String::new();
        errors.read_to_string(&mut text).await.map(|_| text)
    });
    let mut lines = Vec::new();
    while let Some(line) = told.next_line().await.unwrap() {
        lines.push((Instant::now(), line));
    }
    let status = child.wait().await.unwrap();
    assert!(status.success(), "{build}: {lines:#?}\n{}", errors.await.unwrap().unwrap());
    lines
}

/// Restocks every product so often that snapshots of it are stored.
async fn make_long_histories(client: &Client) {
    for product in (0..PRODUCTS).map(|number| format!("p-{number}")) {
        let register = json!({ "name": "A", "price_cents": 1, "stock": 1 });
        let restock = || batch_line("products", &product, "restock", json!({ "quantity": 1 }));
        let lines: Vec<_> = [batch_line("products", &product, "register", register)]
            .into_iter()
            .chain((0..RESTOCKS).map(|_| restock()))
            .collect();
        let answers = client.batch(&lines).await;
        assert!(answers.iter().all(|answer| answer["status"] == 200), "{answers:?}");
    }
}

#[tokio::test]
async fn the_patch_of_the_next_release_fits_the_sources() {
    fits_the_sources(NEXT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: it builds the previous version"]
async fn the_previous_version_and_this_one_replace_each_other_under_load() {
    let changelog = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/CHANGELOG.md")).unwrap();
    let heading = changelog.lines().find(|line| line.starts_with("## ") && line.ends_with("`)")).unwrap();
    let previous = heading.rsplit('`').nth(1).unwrap();
    let this = programs();
    let this = this.to_str().unwrap();

    let stack = Stack::up_with(&ONE_OF_EACH).await;
    deploy(&stack, previous, &["--back"]).await;
    for (build, options) in [(this, &[][..]), (previous, &["--back"]), (this, &[])] {
        Deployed::under_load(&stack, build, options).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: it builds the next release"]
async fn a_release_with_other_states_another_fold_and_a_migration_comes_and_goes_under_load() {
    let sources = Sources::patched(NEXT).await;
    sources.build().await;
    let (this, next) = (programs(), sources.programs());
    let (this, next) = (this.to_str().unwrap(), next.to_str().unwrap());

    let stack = Stack::up_with(&ONE_OF_EACH).await;
    let client = stack.client();
    make_long_histories(&client).await;
    for (round, (build, options)) in [(next, &[][..]), (this, &["--back"]), (next, &[])].into_iter().enumerate() {
        let deployed = Deployed::under_load(&stack, build, options).await;
        let is_next = build == next;
        assert!(!is_next || deployed.told(&format!("snapshots of form {FORM} written")), "{:#?}", deployed.lines);
        assert!(deployed.told("of product"), "{:#?}", deployed.lines);
        shows_rows_of_its_own(&client, is_next).await;

        let reserve = json!({ "order": format!("o-{round}"), "quantity": 1 });
        client.post("/v1/products/p-0/reserve", reserve).await.accepted(&["product.reserved.v2"]);
        let all = json!({ "order": format!("all-{round}"), "quantity": 4_000_000 });
        client.post("/v1/products/p-0/reserve", all).await.rejected("out_of_stock");
    }
}

/// Checks the rows and the list of the view that both releases fold differently.
async fn shows_rows_of_its_own(client: &Client, is_next: bool) {
    let listed = client.get("/v1/views/product?order=-restocked").await;
    if !is_next {
        assert_eq!(listed.status, 400, "{listed:?}");
        let row = client.get("/v1/products/p-0").await.json();
        assert_eq!((&row["data"]["restocked"], row["data"]["stock"].is_u64()), (&Value::Null, true), "{row}");
        return;
    }
    let restocked = |row: &Value| row["data"]["restocked"].as_u64();
    let rows = listed.json()["rows"].as_array().unwrap().clone();
    assert!(
        rows.len() == PRODUCTS as usize && rows.is_sorted_by(|one, next| restocked(one) >= restocked(next)),
        "{rows:?}"
    );
    for product in 0..PRODUCTS {
        let path = format!("/v1/products/p-{product}");
        eventually("the row counts what was restocked", async || {
            let row = client.get(&path).await.json();
            let stock = row["data"]["stock"].as_u64()?;
            (restocked(&row)? == stock - 1 && stock > u64::from(RESTOCKS)).then_some(())
        })
        .await;
    }
}
