//! `cargo stack bench start`: measures how long each service takes from its start until it is ready, on a stack that has
//! just a few aggregates, and then on the same stack with many.
//!
//! All parts are warm: an instance is stopped by its signal, and started again at once, while everything else runs.

mod shop;
mod report;

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use stack::control::{self, Request};
use stack::layout::Layout;
use stack::services::Profile;
use stack::size::Wanted;
use stack::supervisor::{Supervisor, Words};
use stack::up;

use super::{Cancelled, results};
use report::{Report, Start};
use shop::Shop;

/// Number of aggregates of the first measurement, which touch every partition.
const FEW: u64 = 100;
/// Time within which a part that is ready has to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug, clap::Args)]
// The group is named after the type by default, and another type has the same name.
#[group(skip)]
pub(crate) struct Args {
    /// Number of aggregates in the log for the second measurement
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    aggregates: u64,
    /// Number of times that each service is started
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Use the services of the profile `dev` as they were built
    #[arg(long, hide = true)]
    as_built: bool,
}

/// A part of the stack that is started again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    CommandApi,
    Projector,
    QueryApi,
    Edge,
}

impl Service {
    const ALL: [Self; 4] = [Self::CommandApi, Self::Projector, Self::QueryApi, Self::Edge];

    /// Returns the name of its only process.
    fn process(self) -> &'static str {
        match self {
            Self::CommandApi => "command-api-1",
            Self::Projector => "projector-1",
            Self::QueryApi => "query-api-1",
            Self::Edge => "edge",
        }
    }
}

/// Runs the bench and saves its results as a file in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let mut report = Report::new(results::load_average()?);
    let profile = if args.as_built { Profile::Dev } else { Profile::Release };
    let mut wanted = Wanted::one_of_each();
    wanted.as_built = args.as_built;
    let (_lock, parts, _) = up::prepare(layout, &up::Options { background: false, fresh: true, wanted, profile })?;
    let supervisor = Supervisor::new(layout.clone(), parts, up::address(layout)?.url, Words::Start)?;
    let (ready, became_ready) = mpsc::channel();
    let servers = thread::spawn(move || supervisor.run(|_| ready.send(()).unwrap_or_default()));
    let measured = became_ready.recv().ok().map(|()| measure(layout, args, &mut report, cancelled));
    // An error means that the stack is already stopping.
    let _ = control::ask(layout, &Request::Down);
    servers.join().map_err(|_| anyhow!("the supervisor panicked"))??;
    // Completed measurements are shown even after an error or a cancellation.
    if !report.is_empty() {
        print!("\n{report}");
        println!("\n{}", results::save(results, "start", |time| report.json(time))?.display());
    }
    measured.context("the stack was stopped before it was ready")?
}

/// Starts every service with few aggregates in the log, and then with all.
fn measure(layout: &Layout, args: &Args, report: &mut Report, cancelled: &Cancelled) -> Result<()> {
    let shop = Shop::new(layout);
    let mut registered = 0;
    for aggregates in [FEW, args.aggregates] {
        let (begun, folded) = (Instant::now(), shop.folded());
        shop.register(registered..aggregates, cancelled)?;
        let sent = begun.elapsed();
        shop.await_folded(folded + aggregates - registered, cancelled)?;
        let (sent, shown) = (sent.as_secs_f64(), begun.elapsed().as_secs_f64());
        println!("{aggregates} aggregates in the log after {sent:.1} s, and in the views after {shown:.1} s");
        registered = aggregates;
        for _ in 0..args.rounds {
            for service in Service::ALL {
                cancelled.check()?;
                let start = start(layout, &shop, service)?;
                println!("{:<14} {start}", service.process());
                report.add(aggregates, service, start);
            }
        }
    }
    Ok(())
}

/// Stops a service and starts it again.
fn start(layout: &Layout, shop: &Shop, service: Service) -> Result<Start> {
    let name = || service.process().to_owned();
    let bytes_before = resident_bytes(layout, service)?;
    let begun = Instant::now();
    control::tell(layout, &Request::Stop { name: name() })?;
    let stopped = begun.elapsed();
    let begun = Instant::now();
    control::tell(layout, &Request::Start { name: name() })?;
    let ready = begun.elapsed();
    while !shop.is_answered_by(service) {
        ensure!(begun.elapsed() < ready + ANSWERS_WITHIN, "{} is ready and does not answer", service.process());
        thread::sleep(POLL);
    }
    let answered = begun.elapsed();
    Ok(Start { stopped, ready, answered, bytes_before, bytes_after: resident_bytes(layout, service)? })
}

fn resident_bytes(layout: &Layout, service: Service) -> Result<u64> {
    let processes = control::status(layout)?.processes.into_iter();
    let mut of_service = processes.filter(|process| process.name == service.process());
    of_service.find_map(|process| process.resident_bytes).with_context(|| format!("{} has ended", service.process()))
}
