//! `cargo stack bench read`: measures queries per second, and the delay until a command is visible.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use stack::control::Request;
use stack::layout::Layout;
use stack::part::Launch;
use stack::redis;

use super::comparison::{self, Comparison, Goal, Quantity, Turn};
use super::environment::{Environment, Instances, on_empty_stack};
use super::table::Target::{AtLeast, AtMost};
use super::{Cancelled, peers, programs, tool};

/// Number of products that are read, except in the rows that read a single one.
const PRODUCTS: u32 = 2_000;
const REGISTERED: &str = "read-";
const PRODUCT: &str = "/v1/products/";
/// Commands per second while visibility is measured, for which its goals hold.
const RATE: u32 = 2_000;
const WARM_UP_SECONDS: u64 = 1;
const GRACE: Duration = Duration::from_secs(60);
/// Time allowed for a rebuild, which leaves most of the machine to concurrent load.
const REBUILT_WITHIN: Duration = Duration::from_secs(300);

#[derive(Debug, clap::Args)]
// The group is named after the type by default, and the flattened type has the same name.
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    comparison: comparison::Args,
    /// Use a Redis Cluster, also for the bare servers
    #[arg(long)]
    redis_cluster: bool,
}

const GOALS: &[Goal] = &[
    ratio("hit / limit, 64 connections", "hit-64", "limit-64", 0.85),
    ratio("hit / limit, 256 connections", "hit-256", "limit-256", 0.85),
    ratio("hot row / memory", "hit-256", "memory", 0.8),
    ratio("edge / nginx", "edge", "nginx", 0.9),
    ratio("Postgres / limit", "postgres", "limit-postgres", 0.8),
    ratio("hit / cqrs-es", "hit-64", "cqrs-get", 1.0),
    Goal { name: "visible, p50 ms", of: "visible", to: None, quantity: Quantity::P50Ms, target: AtMost(5.0) },
    Goal { name: "visible, p99 ms", of: "visible", to: None, quantity: Quantity::P99Ms, target: AtMost(25.0) },
    Goal {
        name: "visible while a view is rebuilt, p99 ms",
        of: "visible-rebuild",
        to: None,
        quantity: Quantity::P99Ms,
        target: AtMost(50.0),
    },
];

const fn ratio(name: &'static str, of: &'static str, to: &'static str, least: f64) -> Goal {
    Goal { name, of, to: Some(to), quantity: Quantity::Rate, target: AtLeast(least) }
}

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let wrk = programs::wrk(layout)?;
    let comparison::Args { seconds, rounds } = args.comparison;
    let mut comparison = Comparison::new("read", seconds, GOALS)?;
    let redis_cluster = args.redis_cluster;
    let instances = Instances { command_apis: 1, projectors: 1, query_apis: 1, redis_cluster, ..Instances::NONE };
    let ended = (1..=rounds).try_for_each(|round| {
        println!("Round {round} of {rounds}, on a new, empty stack in {}", layout.state.display());
        on_empty_stack(layout, instances, peers::of_read, cancelled, |environment| {
            let meter = Meter { environment, wrk: &wrk, seconds, redis_cluster };
            meter.prepare()?;
            meter.rows(&mut comparison, round % 2 == 0)
        })
    });
    comparison.report(results)?;
    ended
}

struct Meter<'a> {
    environment: &'a Environment<'a>,
    wrk: &'a Path,
    seconds: u64,
    redis_cluster: bool,
}

impl Meter<'_> {
    /// Registers products, waits until they are visible, and primes the bare server with a row to answer.
    fn prepare(&self) -> Result<()> {
        let (commands, shop) = (self.commands(), peers::address(self.environment.layout, peers::SHOP));
        let body = r#"{"name":"A thing","price_cents":1177,"stock":1000000000}"#;
        for product in 1..=PRODUCTS {
            for server in [&commands, &shop] {
                let url = format!("http://{server}/v1/products/{REGISTERED}{product}/register");
                match self.environment.post(&url, body)? {
                    200 => {}
                    status => bail!("registering a product failed with {status}"),
                }
            }
        }
        let last = format!("http://{}/v1/products/{REGISTERED}{PRODUCTS}", self.queries());
        while self.environment.get(&last)?.0 != 200 {
            self.environment.cancelled.check()?;
            thread::sleep(Duration::from_millis(50));
        }
        let (_, row) = self.environment.get(&format!("http://{}/v1/products/{REGISTERED}1", self.queries()))?;
        let limit = peers::address(self.environment.layout, peers::LIMIT_READ);
        match self.environment.post(&format!("http://{limit}/prime"), &row)? {
            200 => Ok(()),
            status => bail!("priming the bare server failed with {status}"),
        }
    }

    /// Measures all rows, reads in reverse order if `backwards`, so that no row always precedes its counterpart.
    fn rows(&self, comparison: &mut Comparison, backwards: bool) -> Result<()> {
        let cancelled = self.environment.cancelled;
        let (queries, limit) = (self.queries(), peers::address(self.environment.layout, peers::LIMIT_READ));
        let (shop, nginx) = (
            peers::address(self.environment.layout, peers::SHOP),
            peers::address(self.environment.layout, peers::NGINX),
        );
        let edge = format!("127.0.0.1:{}", self.environment.layout.ports.edge());
        let mut reads = [
            ("hit-64", &queries, PRODUCT, "64"),
            ("limit-64", &limit, PRODUCT, "64"),
            ("hit-256", &queries, PRODUCT, "256"),
            ("limit-256", &limit, PRODUCT, "256"),
            ("memory", &limit, "/memory/", "256"),
            ("edge", &edge, PRODUCT, "256"),
            ("nginx", &nginx, PRODUCT, "256"),
            ("cqrs-get", &shop, PRODUCT, "64"),
        ];
        if backwards {
            reads.reverse();
        }
        for (row, server, path, connections) in reads {
            comparison.take(row, self.wrk(server, path, 1, connections), cancelled)?;
        }
        // Without Redis, query-api reads from Postgres; the other row has the bare server do that.
        let without = self.without_redis(|| self.wrk(&queries, PRODUCT, PRODUCTS, "64"));
        comparison.take("postgres", without, cancelled)?;
        comparison.take("limit-postgres", self.wrk(&limit, "/postgres/", PRODUCTS, "64"), cancelled)?;
        comparison.take("visible", self.visible("visible"), cancelled)?;
        comparison.take("visible-rebuild", self.visible_while_rebuilt(), cancelled)
    }

    fn wrk(&self, server: &str, path: &str, products: u32, connections: &str) -> Result<Turn> {
        let script = tool::script("read.lua");
        let turn = |seconds: u64| {
            let (duration, url) = (format!("{seconds}s"), format!("http://{server}"));
            let args = ["-t", "2", "-c", connections, "-d", &duration, "--timeout", "10s", "-s", &script, &url];
            let launch = Launch::new(self.wrk, args)
                .env("RESULTS", tool::script("results.lua"))
                .env("PRODUCTS", products.to_string())
                .env("FIRST", format!("{path}{REGISTERED}"));
            self.turn(&launch, seconds)
        };
        turn(WARM_UP_SECONDS)?;
        turn(self.seconds)
    }

    fn without_redis(&self, turn: impl FnOnce() -> Result<Turn>) -> Result<Turn> {
        let servers = redis::names(self.redis_cluster);
        servers.iter().try_for_each(|name| self.environment.tell(&Request::Stop { name: name.clone() }))?;
        let turn = turn();
        servers.into_iter().try_for_each(|name| self.environment.tell(&Request::Start { name }))?;
        turn
    }

    fn visible(&self, run: &str) -> Result<Turn> {
        let launch = peers::program(self.environment.layout, "visible")?
            .env("ADDRESS", self.commands())
            .env("QUERIES", self.queries())
            .env("RATE", RATE.to_string())
            .env("PRODUCTS", PRODUCTS.to_string())
            .env("PREFIX", REGISTERED)
            .env("RUN", run)
            .env("SECONDS", self.seconds.to_string());
        self.turn(&launch, self.seconds)
    }

    /// Measures visibility while a view is rebuilt repeatedly, after filling the log so that a rebuild takes a while.
    fn visible_while_rebuilt(&self) -> Result<Turn> {
        let batch = peers::program(self.environment.layout, "batch")?
            .env("ADDRESS", self.commands())
            .env("PRODUCTS", PRODUCTS.to_string())
            .env("PREFIX", REGISTERED)
            .env("RUN", "fill")
            .env("SECONDS", self.seconds.to_string());
        self.turn(&batch, self.seconds)?;
        self.visible("settle")?;
        let rebuild = super::projector_tool(self.environment.layout, &["rebuild", "product"])?;
        thread::scope(|scope| {
            let visible = scope.spawn(|| self.visible("rebuild"));
            while !visible.is_finished() {
                tool::run(self.environment, "rebuild", &rebuild, REBUILT_WITHIN)?;
            }
            visible.join().expect("the measuring thread does not panic")
        })
    }

    fn turn(&self, launch: &Launch, seconds: u64) -> Result<Turn> {
        tool::load(self.environment, launch, Duration::from_secs(seconds) + GRACE)
    }

    fn commands(&self) -> String {
        format!("127.0.0.1:{}", self.environment.layout.ports.command_http(1))
    }

    fn queries(&self) -> String {
        format!("127.0.0.1:{}", self.environment.layout.ports.query_http(1))
    }
}
