//! Measures the rush of the first three sales on a new stack, and the same crowd at the bare server.

use anyhow::{Result, ensure};

use crate::bench::comparison::{Comparison, Turn};
use crate::bench::scene::{Cast, on_empty_stack};
use crate::bench::{Cancelled, peers};
use crate::sale::rush::{self, Crowd};
use crate::sale::seen::Seen;
use crate::sale::{self, Args, LIMIT_PER_CUSTOMER, Names};
use stack::layout::Layout;

pub(super) const FIRST: &str = "rush-first";
pub(super) const SECOND: &str = "rush-second";
pub(super) const THIRD: &str = "rush-third";
pub(super) const LIMIT: &str = "crowd-limit";
/// The instances that `cargo stack up` starts by default.
const CAST: Cast = Cast { command_apis: 2, projectors: 2, query_apis: 2, redis_cluster: false };

/// Measures all rows. The rate of a row is that of answered buyers, up to the last one.
pub(super) fn rows(layout: &Layout, args: &Args, comparison: &mut Comparison, cancelled: &Cancelled) -> Result<()> {
    let with_limit =
        |layout: &Layout, _: &_, parts: &mut Vec<_>| peers::of_rush(layout, parts, args.units, LIMIT_PER_CUSTOMER);
    on_empty_stack(layout, CAST, with_limit, cancelled, |scene| {
        scene.set(CAST)?;
        for row in [FIRST, SECOND, THIRD] {
            comparison.take(row, sale(layout, args), cancelled)?;
        }
        comparison.take(LIMIT, limit(layout, args), cancelled)
    })
}

fn sale(layout: &Layout, args: &Args) -> Result<Turn> {
    let (seen, verdict) = sale::play(layout, args)?;
    ensure!(verdict.is_right(), "{verdict}");
    Ok(turn(&seen))
}

fn limit(layout: &Layout, args: &Args) -> Result<Turn> {
    let address = peers::socket_address(layout, peers::CROWD_LIMIT);
    let crowd = Crowd { commands: address, queries: address, ..sale::crowd(layout, args) };
    let seen = rush::play(crowd, &Names::of_now())?;
    println!("{seen}");
    ensure!(seen.odd.is_empty(), "{} unexpected answers, the first: {}", seen.odd.len(), seen.odd[0]);
    Ok(turn(&seen))
}

fn turn(seen: &Seen) -> Turn {
    let us = |share| Some((seen.commands.ms(share) * 1e3) as u64);
    let seconds = seen.within.as_secs_f64();
    Turn { requests: seen.buyers, failed: 0, seconds, p50_us: us(0.5), p99_us: us(0.99) }
}
