//! `cargo stack sale`: simulates a flash sale from the outside. A rush of buyers with concurrent watchers is followed
//! by payments and expiries until every order has ended; then the results are checked against the log.

pub(crate) mod shop;
pub(crate) mod visitor;
pub(crate) mod rush;
pub(crate) mod observations;
mod display;
mod orders;
mod verdict;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use jiff::Timestamp;
use stack::control;
use stack::layout::Layout;
use stack::status::Phase;
use stack::up;

use observations::Observations;
use rush::Crowd;
use shop::Shop;
use verdict::Verdict;

use crate::wire::Server;

/// Units in the product's stock in addition to the sale's.
const BESIDE: u64 = 100;
pub(crate) const LIMIT_PER_CUSTOMER: u64 = 2;
const PRICE_CENTS: u64 = 999;
/// Timeout for reserving the sale's units and for orders to end, both of which normally take far less.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest payment window for which unpaid orders are left to expire; with a longer one they are cancelled.
const LONGEST_WINDOW: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, clap::Args)]
// A bench flattens these arguments together with another type named `Args`, and group names must be unique.
#[group(skip)]
pub(crate) struct Args {
    /// Number of customers who try to buy a unit
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) buyers: u64,
    /// Number of units on sale
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) units: u64,
    /// Number of customers who only watch, with one query per second, each on its own connection
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(0..=3_000))]
    watchers: u64,
    /// Number of connections that the buyers share
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1024))]
    connections: u64,
    /// Send commands to command-api-1 directly instead of through the edge
    #[arg(long)]
    direct: bool,
}

/// Names that are unique to one run.
pub(crate) struct Names {
    pub(crate) run: String,
    pub(crate) product: String,
    pub(crate) sale: String,
}

pub(crate) fn run(layout: &Layout, args: &Args) -> Result<ExitCode> {
    if !control::is_locked(layout)? || control::status(layout)?.state != Phase::Ready {
        bail!("no stack is ready; start one with `cargo stack up`, preferably with --payment-window 60");
    }
    let (_, verdict) = play(layout, args)?;
    print!("{verdict}");
    Ok(if verdict.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Plays a sale until its last order has ended. The stack must be ready.
pub(crate) fn play(layout: &Layout, args: &Args) -> Result<(Observations, Verdict)> {
    let names = Names::of_now();
    let address = up::address(layout)?;
    let shop = Shop::new(layout)?;
    open(&shop, &names, args.units, LIMIT_PER_CUSTOMER)?;
    println!("sale        {} units of {} at {}/v1/sales/{}", args.units, names.product, address.url, names.sale);

    let observations = rush::play(crowd(layout, args)?, &names)?;
    println!("{observations}");

    let window = up::payment_window(layout);
    let ended = orders::end(&shop, &names, &observations.accepted, (window <= LONGEST_WINDOW).then_some(window))?;
    let verdict = verdict::of(&shop, &names, args.units, &observations, &ended)?;
    Ok((observations, verdict))
}

impl Names {
    pub(crate) fn of_now() -> Self {
        let run = format!("{:x}", Timestamp::now().as_millisecond());
        Self { product: format!("cd-{run}"), sale: format!("drop-{run}"), run }
    }
}

pub(crate) fn crowd(layout: &Layout, args: &Args) -> Result<Crowd> {
    let authority = up::address(layout)?.authority;
    let at = |port| Server::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), authority.as_deref());
    let edge = layout.ports.edge();
    let commands = if args.direct { layout.ports.command_http(1) } else { edge };
    Ok(Crowd {
        buyers: args.buyers,
        watchers: args.watchers,
        connections: args.connections,
        limit: LIMIT_PER_CUSTOMER,
        polls: false,
        accepted: Arc::default(),
        commands: at(commands)?,
        queries: at(edge)?,
    })
}

/// Registers a product and schedules its sale. Returns when the sale has reserved its units.
pub(crate) fn open(shop: &Shop, names: &Names, units: u64, limit: u64) -> Result<()> {
    let stock = units + BESIDE;
    let product = format!(r#"{{"name":"Kind of Blue","price_cents":1499,"stock":{stock}}}"#);
    shop.must(&format!("/v1/products/{}/register", names.product), &product)?;
    let sale = format!(
        r#"{{"product":"{}","opens_at":"2020-01-01T00:00:00Z","closes_at":"2999-01-01T00:00:00Z","price_cents":{PRICE_CENTS},"units":{units},"limit_per_customer":{limit}}}"#,
        names.product
    );
    shop.must(&format!("/v1/sales/{}/schedule", names.sale), &sale)?;
    let path = format!("/v1/sales/{}", names.sale);
    let begun = Instant::now();
    loop {
        let row = shop.row(&path)?.unwrap_or_default();
        match row["status"].as_str() {
            Some("stocked" | "open") => return Ok(()),
            Some("refused") => bail!("the product has too few units for the sale: {row}"),
            _ if begun.elapsed() > PATIENCE => {
                bail!("the sale's units were not reserved: {row}; is a projector running?")
            }
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
}
