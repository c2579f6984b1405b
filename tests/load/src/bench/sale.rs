//! `cargo stack bench sale`: compares claims with reservations, measures orders from placement to confirmation, and
//! compares the rush of `cargo stack sale` with the same crowd at a server that answers from memory.

mod rush;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use stack::control::Request;
use stack::layout::Layout;
use stack::part::Launch;

use super::comparison::{self, Comparison, Goal, Quantity, Turn};
use super::environment::{Environment, Instances, on_empty_stack};
use super::table::Target::{AtLeast, AtMost};
use super::{Cancelled, peers, programs, tool};

const PRODUCTS: u32 = 2_000;
/// Stock that exceeds the need of any run.
const PLENTY: u32 = 1_000_000_000;
/// Number of claims of a sale before its rate is measured again.
const MANY_CLAIMS: f64 = 1_000_000.0;
/// Orders per second while the time to confirmation is measured.
const STEADY: u32 = 500;
const WARM_UP_SECONDS: u64 = 1;
const GRACE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
const REACTED: &str = "stampede_reaction_seconds";

const GOALS: &[Goal] = &[
    ratio("claim / reserve on one product", "claim", "reserve", 0.9),
    ratio("claim after 1,000,000 claims / reserve", "claim-late", "reserve", 0.9),
    Goal {
        name: "orders placed and confirmed, a second",
        of: "chain",
        to: None,
        quantity: Quantity::Rate,
        target: AtLeast(5_000.0),
    },
    Goal {
        name: "placed to confirmed at 500 a second, p99 ms",
        of: "chain-steady",
        to: None,
        quantity: Quantity::P99Ms,
        target: AtMost(150.0),
    },
    // Rates of answered buyers: the first rush takes at most twice as long as at the crowd limit, the third 1.5 times.
    ratio("first rush of a stack / crowd limit", rush::FIRST, rush::LIMIT, 0.5),
    ratio("third rush of a stack / crowd limit", rush::THIRD, rush::LIMIT, 0.667),
];

const fn ratio(name: &'static str, of: &'static str, to: &'static str, least: f64) -> Goal {
    Goal { name, of, to: Some(to), quantity: Quantity::Rate, target: AtLeast(least) }
}

#[derive(Debug, clap::Args)]
// The group is named after the type by default, and a flattened type has the same name.
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    comparison: comparison::Args,
    #[command(flatten)]
    crowd: crate::sale::Args,
    /// Measure only the rush
    #[arg(long)]
    only_rush: bool,
}

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let wrk = programs::wrk(layout)?;
    let comparison::Args { seconds, rounds } = args.comparison;
    let mut comparison = Comparison::new("sale", seconds, GOALS)?;
    let instances = Instances { command_apis: 1, projectors: 1, ..Instances::NONE };
    let ended = (1..=rounds).try_for_each(|round| {
        println!("Round {round} of {rounds}, on new, empty stacks in {}", layout.state.display());
        rush::rows(layout, &args.crowd, &mut comparison, cancelled)?;
        if args.only_rush {
            return Ok(());
        }
        on_empty_stack(layout, instances, peers::of_projection, cancelled, |environment| {
            let meter = Meter { environment, wrk: &wrk, seconds };
            meter.prepare()?;
            environment.set(instances)?;
            comparison.take("chain", meter.chains(), cancelled)?;
            // Follows `chain`, after which Kafka's JIT compilation, which occupies a core for a while, is done.
            comparison.take("chain-steady", meter.steady(), cancelled)?;
            environment.set(Instances { command_apis: 1, ..Instances::NONE })?;
            comparison.take("reserve", meter.reserve(), cancelled)?;
            comparison.take("claim", meter.claim(), cancelled)?;
            comparison.take("claim-late", meter.claim_late(), cancelled)?;
            // The projectors have not run since, so the next owner must read everything that it needs from the log.
            comparison.take("take-over", meter.take_over(), cancelled)
        })
    });
    comparison.report(results)?;
    ended
}

struct Meter<'a> {
    environment: &'a Environment<'a>,
    wrk: &'a Path,
    seconds: u64,
}

impl Meter<'_> {
    /// Registers products for orders and schedules a sale. Sends the sale's `stock` command in place of the reactor,
    /// which does not run.
    fn prepare(&self) -> Result<()> {
        self.environment.set(Instances { command_apis: 1, ..Instances::NONE })?;
        let product = format!(r#"{{"name":"A thing","price_cents":1177,"stock":{PLENTY}}}"#);
        for number in 1..=PRODUCTS {
            self.post(&format!("/v1/products/p-{number}/register"), &product)?;
        }
        let window = r#""opens_at":"2020-01-01T00:00:00Z","closes_at":"2999-01-01T00:00:00Z""#;
        let sale = format!(
            r#"{{"product":"of-a-sale",{window},"price_cents":1,"units":{PLENTY},"limit_per_customer":{PLENTY}}}"#
        );
        self.post("/v1/sales/drop/schedule", &sale)?;
        let url = format!("http://127.0.0.1:{}/v1/sales/drop/stock", self.environment.layout.ports.command_internal(1));
        ensure!(self.environment.post_internal(&url, "{}")? == 200, "the sale did not get its units");
        Ok(())
    }

    fn post(&self, path: &str, body: &str) -> Result<()> {
        let status = self.environment.post(&format!("http://{}{path}", self.commands()), body)?;
        ensure!(status == 200, "{path} was answered {status}");
        Ok(())
    }

    fn commands(&self) -> String {
        format!("127.0.0.1:{}", self.environment.layout.ports.command_http(1))
    }

    fn reserve(&self) -> Result<Turn> {
        self.wrk("reserve.lua", "warm", WARM_UP_SECONDS)?;
        self.wrk("reserve.lua", "run", self.seconds)
    }

    fn claim(&self) -> Result<Turn> {
        self.wrk("claim.lua", "warm", WARM_UP_SECONDS)?;
        self.wrk("claim.lua", "run", self.seconds)
    }

    fn claim_late(&self) -> Result<Turn> {
        let claims = || self.environment.count("stampede_commands_total", r#"command="claim",outcome="accepted""#);
        for fill in 0.. {
            if claims()? >= MANY_CLAIMS {
                break;
            }
            self.wrk("claim.lua", &format!("fill-{fill}"), 10)?;
        }
        self.wrk("claim.lua", "late", self.seconds)
    }

    /// Measures the time from the death of the only owner to the first claim that the next one accepts. A killed owner
    /// remains a member of its consumer group until its session times out.
    fn take_over(&self) -> Result<Turn> {
        let claim = r#"{"customer":"c-after","quantity":1,"order":"after"}"#;
        let url = format!("http://{}/v1/sales/drop/claim", self.commands());
        let (name, signal) = (String::from("command-api-1"), Signal::KILL.as_raw());
        let begun = Instant::now();
        self.environment.tell(&Request::Kill { name, signal })?;
        // An error means that no instance is listening yet.
        while !self.environment.post(&url, claim).is_ok_and(|status| status == 200) {
            self.environment.cancelled.check()?;
            ensure!(begun.elapsed() < GRACE, "no takeover within {} s", GRACE.as_secs());
            thread::sleep(POLL);
        }
        let took = begun.elapsed();
        let us = Some(took.as_micros() as u64);
        Ok(Turn { requests: 1, failed: 0, seconds: took.as_secs_f64(), p50_us: us, p99_us: us })
    }

    /// Runs wrk with one of the scripts. `run` is the prefix of its order ids.
    fn wrk(&self, script: &str, run: &str, seconds: u64) -> Result<Turn> {
        let script = tool::script(&format!("write/{script}"));
        let (duration, url) = (format!("{seconds}s"), format!("http://{}", self.commands()));
        let args = ["-t", "2", "-c", "256", "-d", &duration, "--timeout", "10s", "-s", &script, &url];
        let launch = Launch::new(self.wrk, args).env("RESULTS", tool::script("results.lua")).env("PRODUCTS", "1");
        self.turn(&launch.env("PREFIX", "p-").env("RUN", run))
    }

    /// Places orders at full speed and measures until the last one is confirmed.
    fn chains(&self) -> Result<Turn> {
        let before = self.reacted()?;
        let begun = Instant::now();
        let Turn { requests, failed, .. } = self.orders("batch", "burst")?;
        let wanted = before + (requests - failed) as f64;
        while self.reacted()? < wanted {
            self.environment.cancelled.check()?;
            if begun.elapsed() > GRACE {
                bail!("after {} s only {} of {wanted} orders are confirmed", GRACE.as_secs(), self.reacted()?);
            }
            thread::sleep(POLL);
        }
        Ok(Turn { requests, failed, seconds: begun.elapsed().as_secs_f64(), ..Turn::default() })
    }

    /// Places orders at a fixed rate. The latencies are the reactor's own, from an order's event to the answer to its
    /// confirmation.
    fn steady(&self) -> Result<Turn> {
        self.orders("open-loop", "warm")?;
        let admin = self.environment.layout.ports.projector_admin(1);
        let before = self.environment.histogram(admin, REACTED)?;
        let turn = self.orders("open-loop", "steady")?;
        thread::sleep(Duration::from_secs(1));
        let during = self.environment.histogram(admin, REACTED)?.since(&before);
        let us = |share| during.quantile(share).map(|seconds| (seconds * 1e6) as u64);
        Ok(Turn { p50_us: us(0.5), p99_us: us(0.99), ..turn })
    }

    fn reacted(&self) -> Result<f64> {
        self.environment.metric(self.environment.layout.ports.projector_admin(1), &format!("{REACTED}_count"))
    }

    fn orders(&self, client: &str, run: &str) -> Result<Turn> {
        let launch = peers::program(self.environment.layout, client)?
            .env("ADDRESS", self.commands())
            .env("AGGREGATES", "orders")
            .env("RATE", STEADY.to_string())
            .env("PRODUCTS", PRODUCTS.to_string())
            .env("PREFIX", "p-")
            .env("RUN", run)
            .env("SECONDS", self.seconds.to_string());
        self.turn(&launch)
    }

    fn turn(&self, launch: &Launch) -> Result<Turn> {
        tool::load(self.environment, launch, GRACE)
    }
}
