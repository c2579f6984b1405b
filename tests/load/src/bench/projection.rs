//! `cargo stack bench projection`: measures how fast a projector folds an existing log.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use stack::control::Request;
use stack::layout::Layout;
use stack::part::Part;
use stack::postgres;
use stack::provision::Tools;

use super::comparison::{Args, Comparison, Goal, Quantity, Turn};
use super::environment::{Environment, Instances, on_empty_stack};
use super::table::Target::AtLeast;
use super::{Cancelled, peers, tool};

const PRODUCTS: u32 = 2_000;
const PROJECTOR: &str = "projector-1";
const POLL: Duration = Duration::from_millis(20);
/// Time allowed for folding the log, and for a client to end.
const GRACE: Duration = Duration::from_secs(600);

const GOALS: &[Goal] = &[
    value("all views, events a second", "all", 200_000.0),
    value("product alone, events a second", "product", 400_000.0),
    ratio("orders / raw upserts", "orders", "upserts", 0.8),
    ratio("rebuild of product / raw consumer", "rebuild", "consume", 0.7),
];

const fn value(name: &'static str, of: &'static str, least: f64) -> Goal {
    Goal { name, of, to: None, quantity: Quantity::Rate, target: AtLeast(least) }
}

const fn ratio(name: &'static str, of: &'static str, to: &'static str, least: f64) -> Goal {
    Goal { name, of, to: Some(to), quantity: Quantity::Rate, target: AtLeast(least) }
}

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let mut comparison = Comparison::new("projection", args.seconds, GOALS)?;
    let instances = Instances { command_apis: 1, projectors: 1, ..Instances::NONE };
    let ended = (1..=args.rounds).try_for_each(|round| {
        for (row, views) in [("all", ""), ("product", "product"), ("orders", "order")] {
            println!("Round {round} of {}, on a new, empty stack in {}", args.rounds, layout.state.display());
            let adapt = |layout: &Layout, tools: &Tools, parts: &mut Vec<Part>| {
                let projector =
                    parts.iter_mut().find(|part| part.name == PROJECTOR).context("the plan has no projector")?;
                // Without a reactor: its commands are measured by another bench.
                projector.launch.env.retain(|(name, _)| name != "REACTOR_COMMAND_URLS");
                if !views.is_empty() {
                    projector.launch.env.push(("PROJECTOR_VIEWS".to_owned(), views.to_owned()));
                }
                peers::of_projection(layout, tools, parts)
            };
            on_empty_stack(layout, instances, adapt, cancelled, |environment| {
                let meter = Meter { environment, seconds: args.seconds };
                let commits = meter.fill(if row == "orders" { "orders" } else { "products" })?;
                comparison.take(row, meter.fold(commits), cancelled)?;
                match row {
                    "all" => {
                        comparison.take("rebuild", meter.rebuild(), cancelled)?;
                        comparison.take("consume", meter.client("consume"), cancelled)
                    }
                    "orders" => comparison.take("upserts", meter.client("upserts"), cancelled),
                    _ => Ok(()),
                }
            })?;
        }
        Ok(())
    });
    comparison.report(results)?;
    ended
}

struct Meter<'a> {
    environment: &'a Environment<'a>,
    seconds: u64,
}

impl Meter<'_> {
    /// Fills the log while no projector runs. Returns the number of accepted commands.
    fn fill(&self, aggregates: &str) -> Result<u64> {
        self.environment.set(Instances { command_apis: 1, ..Instances::NONE })?;
        let address = format!("127.0.0.1:{}", self.environment.layout.ports.command_http(1));
        let body = r#"{"name":"A thing","price_cents":1177,"stock":1000000000}"#;
        for product in 1..=PRODUCTS {
            match self.environment.post(&format!("http://{address}/v1/products/p-{product}/register"), body)? {
                200 => {}
                status => bail!("registering a product failed with {status}"),
            }
        }
        let launch = peers::program(self.environment.layout, "batch")?
            .env("ADDRESS", address)
            .env("AGGREGATES", aggregates)
            .env("PRODUCTS", PRODUCTS.to_string())
            .env("PREFIX", "p-")
            .env("RUN", "run")
            .env("SECONDS", self.seconds.to_string());
        let Turn { requests, failed, .. } = tool::load(self.environment, &launch, GRACE)?;
        Ok(requests - failed + u64::from(PRODUCTS))
    }

    /// Starts the projector and waits until it has folded `commits` commands. The time begins at the last poll before
    /// the first of them is folded.
    fn fold(&self, commits: u64) -> Result<Turn> {
        self.environment.tell(&Request::Start { name: PROJECTOR.to_owned() })?;
        let admin = self.environment.layout.ports.projector_admin(1);
        let mut began = None;
        let begun = Instant::now();
        loop {
            self.environment.cancelled.check()?;
            let folded = self.environment.metric(admin, "stampede_commits_folded_total")? as u64;
            let now = Instant::now();
            if folded == 0 && began.is_none_or(|(_, folded)| folded == 0) {
                began = Some((now, 0));
            }
            let (since, before) = *began.get_or_insert((now, folded));
            if folded >= commits {
                let seconds = now.duration_since(since).as_secs_f64();
                return Ok(Turn { requests: folded - before, seconds, ..Turn::default() });
            }
            if begun.elapsed() > GRACE {
                bail!("after {} s the projector has folded {folded} of {commits} commands", GRACE.as_secs());
            }
            thread::sleep(POLL);
        }
    }

    fn rebuild(&self) -> Result<Turn> {
        let launch = super::projector_tool(self.environment.layout, &["rebuild", "product", "--fast"])?;
        let text = tool::run(self.environment, "rebuild", &launch, GRACE)?;
        let line = text.lines().find_map(|line| line.strip_prefix("folded"));
        let mut numbers = line.with_context(|| format!("no result in {text:?}"))?.split_whitespace();
        let mut number = || numbers.find_map(|word| word.parse::<f64>().ok()).context("a number is missing");
        Ok(Turn { requests: number()? as u64, seconds: number()?, ..Turn::default() })
    }

    fn client(&self, name: &str) -> Result<Turn> {
        let launch = peers::program(self.environment.layout, name)?
            .env("DATABASE_URL", postgres::url(self.environment.layout)?)
            .env("SECONDS", self.seconds.to_string());
        tool::load(self.environment, &launch, GRACE)
    }
}
