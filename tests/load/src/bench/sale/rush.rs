//! Measures the rush of the first three sales on a new stack, and the same crowd at the bare server.

use anyhow::{Result, ensure};
use stack::layout::Layout;

use crate::bench::comparison::{Comparison, Turn};
use crate::bench::environment::{Instances, on_empty_stack};
use crate::bench::{Cancelled, peers};
use crate::sale::observations::Observations;
use crate::sale::rush::{self, Crowd};
use crate::sale::{self, Args, LIMIT_PER_CUSTOMER, Names};
use crate::wire::Server;

pub(super) const FIRST: &str = "rush-first";
pub(super) const SECOND: &str = "rush-second";
pub(super) const THIRD: &str = "rush-third";
pub(super) const LIMIT: &str = "crowd-limit";
/// The instances that `cargo stack up` starts by default.
const INSTANCES: Instances = Instances { command_apis: 2, projectors: 2, query_apis: 2, ..Instances::NONE };

/// Measures all rows. The rate of a row is that of answered buyers, up to the last one.
pub(super) fn rows(layout: &Layout, args: &Args, comparison: &mut Comparison, cancelled: &Cancelled) -> Result<()> {
    let with_limit =
        |layout: &Layout, _: &_, parts: &mut Vec<_>| peers::of_rush(layout, parts, args.units, LIMIT_PER_CUSTOMER);
    on_empty_stack(layout, INSTANCES, with_limit, cancelled, |environment| {
        environment.set(INSTANCES)?;
        for row in [FIRST, SECOND, THIRD] {
            comparison.take(row, sale(layout, args), cancelled)?;
        }
        comparison.take(LIMIT, limit(layout, args), cancelled)
    })
}

fn sale(layout: &Layout, args: &Args) -> Result<Turn> {
    let (observations, verdict) = sale::play(layout, args)?;
    ensure!(verdict.is_right(), "{verdict}");
    Ok(turn(&observations))
}

fn limit(layout: &Layout, args: &Args) -> Result<Turn> {
    let server = Server::new(peers::socket_address(layout, peers::CROWD_LIMIT), None)?;
    let crowd = Crowd { commands: server.clone(), queries: server, ..sale::crowd(layout, args)? };
    let observations = rush::play(crowd, &Names::of_now())?;
    println!("{observations}");
    ensure!(
        observations.odd.is_empty(),
        "{} unexpected answers, the first: {}",
        observations.odd.len(),
        observations.odd[0]
    );
    Ok(turn(&observations))
}

fn turn(observations: &Observations) -> Turn {
    let us = |share| Some((observations.commands.ms(share) * 1e3) as u64);
    let seconds = observations.within.as_secs_f64();
    Turn { requests: observations.buyers, failed: 0, seconds, p50_us: us(0.5), p99_us: us(0.99) }
}
