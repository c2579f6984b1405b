//! `cargo stack bench write`: measures commands per second and their latency.
//!
//! The rows alternate, so that other load on the machine affects all of them alike. Each round has a new stack with
//! empty data, so that no row is affected by the data of an earlier round.

mod row;
mod load;
mod measure;
mod ratio;
mod report;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use stack::layout::Layout;

use super::environment::{Instances, on_empty_stack};
use super::{Cancelled, comparison, peers, programs, results};
use load::Clients;
use measure::{Measurement, Meter};
use report::Report;
use row::Row;

// The group is named after the type by default, and the flattened type has the same name.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    comparison: comparison::Args,
    /// Rows to measure [default: all]
    #[arg(value_enum, value_name = "ROW")]
    rows: Vec<Row>,
}

/// Results by row, one entry per round, which is `None` if the row failed.
type Measurements = BTreeMap<Row, Vec<Option<Measurement>>>;

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let wrk = programs::wrk(layout)?;
    let rows: Vec<_> = Row::ALL.into_iter().filter(|row| args.rows.is_empty() || args.rows.contains(row)).collect();
    let most = rows.iter().map(|row| row.instances());
    let most = most.reduce(Instances::or_more).unwrap_or(Instances { command_apis: 1, ..Instances::NONE });
    let load_average = results::load_average()?;
    if load_average > 1.0 {
        println!("Warning: the machine is busy (load average {load_average}); the figures below are unreliable.");
    }
    let mut measurements = Measurements::new();
    let ended = (1..=args.comparison.rounds).try_for_each(|round| {
        println!("Round {round} of {}, on a new, empty stack in {}", args.comparison.rounds, layout.state.display());
        on_empty_stack(layout, most, peers::of_write, cancelled, |environment| {
            let clients = Clients { environment, wrk: &wrk };
            let meter = Meter { clients, seconds: args.comparison.seconds };
            rows.iter().try_for_each(|row| take_turn(&meter, *row, &mut measurements))
        })
    });
    // Completed measurements are shown even after an error or a cancellation.
    if !measurements.is_empty() {
        let report = Report { seconds: args.comparison.seconds, load_average, measurements: &measurements };
        print!("\n{report}");
        println!("\n{}", report.save(results)?.display());
    }
    ended
}

/// Measures one row, and prints and records its result. A failed row does not stop the others.
fn take_turn(meter: &Meter<'_>, row: Row, measurements: &mut Measurements) -> Result<()> {
    let measured = meter.measure(row);
    meter.clients.environment.cancelled.check()?;
    match &measured {
        Ok(measurement) => println!("          {:<18} {measurement}", row.name()),
        Err(error) => println!("          {:<18} failed: {error:#}", row.name()),
    }
    measurements.entry(row).or_default().push(measured.ok());
    Ok(())
}
