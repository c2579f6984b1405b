//! `cargo stack bench seckill`: runs the crowd of `cargo stack sale` against this system and against a textbook
//! architecture, `tests/peers/seckill`, one after the other: undisturbed, and while a part of either is killed. Orders
//! are counted by SQL afterwards.

mod peer;
mod count;
mod report;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use rustix::process::Signal;
use serde::Serialize;
use stack::control::Request;
use stack::layout::Layout;
use stack::part::{Launch, Part};
use stack::provision::Tools;
use stack::redis;

use super::environment::{Environment, Instances, on_empty_stack};
use super::programs::{self, SeckillTools};
use super::{Cancelled, peers, projector_tool, tool};
use crate::sale::observations::Observations;
use crate::sale::rush::{self, Crowd};
use crate::sale::shop::Shop;
use crate::sale::{self, Names};
use crate::wire::Server;
use count::Count;
use report::{Outcome, Report};

/// Units per customer, as in the textbook's sale.
const LIMIT_PER_CUSTOMER: u64 = 1;
/// Downtime of a killed store; a service is restarted at once.
const AWAY: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(1);
const GRACE: Duration = Duration::from_secs(300);
/// The instances that `cargo stack up` starts by default.
const OURS: Instances = Instances { command_apis: 2, projectors: 2, query_apis: 2, ..Instances::NONE };

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Number of customers who try to buy a unit
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    buyers: u64,
    /// Number of units on sale
    #[arg(long, default_value_t = 25_000, value_parser = clap::value_parser!(u64).range(4..=10_000_000))]
    units: u64,
    /// Number of customers who only watch, with one query per second
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(0..=3_000))]
    watchers: u64,
    /// Number of connections that the buyers share
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1024))]
    connections: u64,
    /// Number of rounds; each row is measured once per round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Measure only rows whose name contains this
    #[arg(long)]
    row: Option<String>,
    /// Let the textbook system answer claims without waiting for RabbitMQ's publisher confirms
    #[arg(long)]
    no_confirms: bool,
}

/// A scenario: the parts of either side that are killed once a quarter of the units is claimed.
struct Row {
    name: &'static str,
    of_ours: &'static [&'static str],
    of_peer: &'static [&'static str],
}

const ROWS: [Row; 5] = [
    Row { name: "undisturbed", of_ours: &[], of_peer: &[] },
    Row { name: "order writer killed", of_ours: &["projector-1", "projector-2"], of_peer: &[peer::CONSUMER] },
    Row { name: "Redis killed", of_ours: &[redis::NAME], of_peer: &[redis::NAME] },
    Row { name: "web tier killed", of_ours: &["command-api-1", "command-api-2"], of_peer: &[peer::GUNICORN] },
    Row { name: "broker killed", of_ours: &["kafka-1"], of_peer: &[peer::RABBITMQ] },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Ours,
    Peer,
}

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let own = programs::seckill(layout)?;
    let mut report = Report::new(args.buyers, args.units, !args.no_confirms)?;
    let ended = (1..=args.rounds).try_for_each(|round| {
        for side in [Side::Peer, Side::Ours] {
            println!("Round {round} of {}: {side:?}, in {}", args.rounds, layout.state.display());
            let adapt =
                |layout: &Layout, tools: &Tools, parts: &mut Vec<Part>| side.adapt(layout, tools, &own, args, parts);
            on_empty_stack(layout, OURS, adapt, cancelled, |environment| {
                Play { environment, args, side }.rows(&mut report)
            })?;
        }
        Ok(())
    });
    report.finish(results)?;
    ended
}

impl Side {
    fn adapt(
        self,
        layout: &Layout,
        tools: &Tools,
        own: &SeckillTools,
        args: &Args,
        parts: &mut Vec<Part>,
    ) -> Result<()> {
        if self == Self::Peer {
            *parts = peer::parts(layout, tools, own, !args.no_confirms)?;
        }
        Ok(())
    }
}

/// The measurement of one side's rows on a running stack.
struct Play<'a> {
    environment: &'a Environment<'a>,
    args: &'a Args,
    side: Side,
}

impl Play<'_> {
    fn rows(&self, report: &mut Report) -> Result<()> {
        if self.side == Side::Ours {
            self.environment.set(OURS)?;
        }
        let wanted = |row: &&Row| self.args.row.as_ref().is_none_or(|part| row.name.contains(part.as_str()));
        for row in ROWS.iter().filter(wanted) {
            self.environment.cancelled.check()?;
            report.take(self.side, row.name, self.row(row));
        }
        if self.side == Side::Ours {
            let audit = projector_tool(self.environment.layout, &["audit", "--sample", "1000"])?;
            report.audited(self.run("audit", &audit).map(drop));
        }
        Ok(())
    }

    fn row(&self, row: &Row) -> Result<Outcome> {
        let (names, shop) = (Names::of_now(), Shop::new(self.environment.layout)?);
        sale::open(&shop, &names, self.args.units, LIMIT_PER_CUSTOMER)?;
        let killed = if self.side == Side::Ours { row.of_ours } else { row.of_peer };
        let observations = self.rush(&names, killed)?;
        let count = Count::settled(&observations, self.args.units, || self.orders(&names.sale))?;
        Ok(Outcome::new(&observations, count))
    }

    fn rush(&self, names: &Names, killed: &[&str]) -> Result<Observations> {
        let accepted = Arc::new(AtomicU64::new(0));
        let edge = SocketAddr::from((Ipv4Addr::LOCALHOST, self.environment.layout.ports.edge()));
        let edge = Server::new(edge, None)?;
        let crowd = Crowd {
            buyers: self.args.buyers,
            watchers: self.args.watchers,
            connections: self.args.connections,
            limit: LIMIT_PER_CUSTOMER,
            polls: true,
            accepted: accepted.clone(),
            commands: edge.clone(),
            queries: edge,
        };
        thread::scope(|scope| {
            let disturber = (!killed.is_empty()).then(|| scope.spawn(|| self.disturb(killed, &accepted)));
            let observations = rush::play(crowd, names);
            accepted.store(u64::MAX, Ordering::Relaxed);
            disturber
                .map_or(Ok(Ok(())), thread::ScopedJoinHandle::join)
                .map_err(|_| anyhow!("the disturbing thread panicked"))??;
            observations
        })
    }

    /// Kills parts once a quarter of the units is claimed, and after a while starts those that are still down.
    fn disturb(&self, names: &[&str], accepted: &AtomicU64) -> Result<()> {
        while accepted.load(Ordering::Relaxed) < self.args.units / 4 {
            self.environment.cancelled.check()?;
            thread::sleep(POLL);
        }
        ensure!(accepted.load(Ordering::Relaxed) < u64::MAX, "the rush was over before {names:?} were killed");
        let signal = Signal::KILL.as_raw();
        names.iter().try_for_each(|name| self.environment.tell(&Request::Kill { name: (*name).to_owned(), signal }))?;
        thread::sleep(AWAY);
        names.iter().try_for_each(|name| self.environment.tell(&Request::Start { name: (*name).to_owned() }))
    }

    /// Returns the orders in the database, one per line: id, tab, customer.
    fn orders(&self, sale: &str) -> Result<String> {
        let launch = match self.side {
            Side::Peer => peer::sql(
                self.environment.layout,
                &format!("SELECT CONCAT(sale, '~', name), customer FROM orders WHERE sale = '{sale}'"),
            )?,
            Side::Ours => {
                let mut launch =
                    peers::of_postgres(self.environment.layout, self.environment.tools, "psql", "stampede")?;
                launch.args.extend(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"].map(String::from));
                launch.args.push(String::from("--field-separator=\t"));
                let sql = format!(
                    "SELECT key, data->>'customer' FROM order_rows WHERE starts_with(key, '{sale}~') \
                     AND data->>'status' = 'confirmed'"
                );
                launch.args.extend([String::from("--command"), sql]);
                launch
            }
        };
        self.run("orders", &launch)
    }

    fn run(&self, name: &str, launch: &Launch) -> Result<String> {
        tool::run(self.environment, name, launch, GRACE)
    }
}
