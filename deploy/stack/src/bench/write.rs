//! `cargo stack bench write`: commands a second and the time until each is answered.
//!
//! The rows take turns, so that what the machine does besides falls on all of them; each round has a stack of its own
//! with empty data, so that no row inherits what another one wrote in the round before.

mod row;
mod load;
mod measure;
mod ratio;
mod report;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::scene::{Cast, on_empty_stack};
use super::{Cancelled, comparison, figures, peers};
use crate::layout::Layout;
use crate::provision;
use measure::{Measurement, Meter};
use report::Report;
use row::Row;

// The group has the name of the type, which the flattened one's has already.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    comparison: comparison::Args,
    /// Measure these alone [default: all]
    #[arg(value_enum, value_name = "ROW")]
    rows: Vec<Row>,
}

/// Of each row, one entry a round; `None`: it failed.
type Measurements = BTreeMap<Row, Vec<Option<Measurement>>>;

/// `results`: the folder for the file of this run.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    layout.create()?;
    let wrk = provision::ensure_wrk(&layout.log("apt"))?;
    let rows: Vec<_> = Row::ALL.into_iter().filter(|row| args.rows.is_empty() || args.rows.contains(row)).collect();
    let most = rows.iter().map(|row| row.cast());
    let most = most.reduce(Cast::or_more).unwrap_or(Cast { command_apis: 1, ..Cast::NONE });
    let load_average = figures::load_average()?;
    if load_average > 1.0 {
        println!("The machine is busy already (load average {load_average}): no number below is what it could be.");
    }
    let mut measurements = Measurements::new();
    let ended = (1..=args.comparison.rounds).try_for_each(|round| {
        println!(
            "Round {round} of {}, on an empty stack of its own in {}",
            args.comparison.rounds,
            layout.state.display()
        );
        on_empty_stack(layout, most, peers::of_write, cancelled, |scene| {
            let meter = Meter { scene, wrk: &wrk, seconds: args.comparison.seconds };
            rows.iter().try_for_each(|row| take_turn(&meter, *row, &mut measurements))
        })
    });
    // What there is, is shown, whatever ended it.
    if !measurements.is_empty() {
        let report = Report { seconds: args.comparison.seconds, load_average, measurements: &measurements };
        print!("\n{report}");
        println!("\n{}", report.save(results)?.display());
    }
    ended
}

/// A row that fails leaves the others their turns.
fn take_turn(meter: &Meter<'_>, row: Row, measurements: &mut Measurements) -> Result<()> {
    let measured = meter.measure(row);
    meter.scene.cancelled.check()?;
    match &measured {
        Ok(measurement) => println!("          {:<18} {measurement}", row.name()),
        Err(error) => println!("          {:<18} failed: {error:#}", row.name()),
    }
    measurements.entry(row).or_default().push(measured.ok());
    Ok(())
}
