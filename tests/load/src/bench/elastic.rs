//! `cargo stack bench elastic`: a read rush, a write rush and sudden read rushes, on a stack whose instances are
//! confined to a part of a core and scale by themselves; in between the programs are replaced by themselves. The last
//! rush finds a spare instance of query-api.
//!
//! Clients send at fixed rates: a request's latency counts from the time at which it was due, whether a connection was
//! free or not. The rates follow from what one instance of each tier serves, which is measured first, and the instances
//! are confined so far that they are the bottleneck, not the machine, whose idle share is printed.

mod load;
mod schedule;
mod capacity;
mod watch;
mod report;
mod verdict;
mod picture;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use stack::autoscale::Autoscale;
use stack::control::{self, Request};
use stack::layout::Layout;
use stack::services::{self, Profile, Service};
use stack::size::Wanted;
use stack::supervisor::{Supervisor, Words};
use stack::{deploy, up};

use super::{Cancelled, results};
use crate::wire::Server;
use capacity::{Capacity, await_views};
use load::{Kind, Load};
use report::Report;
use schedule::Phase;
use watch::Watch;

/// Name of the phase in which the programs are replaced.
const DEPLOY: &str = "deploy";
/// Name of the phase from which on there is a spare instance of query-api.
const SPARE: &str = "spare";
/// Description of all moves of it together.
const WHOLE: &str = "the whole deployment";

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Seconds of the read rush; the other phases are longer or shorter in proportion, eight times this together
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(10..=300))]
    seconds: u32,
    /// Thousandths of a core that each instance may use
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(50..))]
    millicores: u32,
    /// Steady load, as a share of what one instance serves; a command costs three times as much at a low rate as at the
    /// highest, at which many are appended together
    #[arg(long, default_value_t = 0.1)]
    steady: f64,
    /// Load of a rush, as a multiple of what one instance serves
    #[arg(long, default_value_t = 2.0)]
    rush: f64,
    /// Seconds in which a rush rises to its load, but for the sudden one
    #[arg(long, default_value_t = 20)]
    ramp: u32,
    /// Largest number of instances of each service
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=12))]
    at_most: u16,
    /// Divides all times of the rules for scaling
    #[arg(long, default_value_t = 30.0)]
    hurry: f64,
    /// Use the services of the profile `dev` as they were built
    #[arg(long, hide = true)]
    as_built: bool,
}

/// A change of the instances, in seconds since the beginning.
#[derive(Debug, Clone, Serialize)]
struct Move {
    at: f64,
    ended: f64,
    what: String,
    /// The service, and its number of instances before and after, if the rules decided.
    change: Option<(Service, u16, u16)>,
}

impl Move {
    /// Returns whether it stands for several others.
    fn is_sum(&self) -> bool {
        self.what == WHOLE
    }
}

/// Runs the bench and saves its results in the folder `results`.
pub(super) fn run(layout: &Layout, results: &Path, args: &Args, cancelled: &Cancelled) -> Result<()> {
    let load_average = results::load_average()?;
    let profile = if args.as_built { Profile::Dev } else { Profile::Release };
    let wanted = Wanted::confined(args.millicores, args.as_built);
    let options = up::Options { background: false, fresh: true, wanted, profile };
    let (_lock, parts, size) = up::prepare(layout, &options)?;
    let binaries = services::binaries(profile)?;
    let supervisor = Supervisor::new(layout.clone(), parts, up::address(layout)?.url, Words::Start)?;
    let supervisor = supervisor.elastic(size, binaries.clone());
    let (ready, became_ready) = mpsc::channel();
    let servers = thread::spawn(move || supervisor.run(|_| ready.send(()).unwrap_or_default()));
    let played = became_ready.recv().ok().map(|()| play(layout, args, &binaries, cancelled));
    // An error means that the stack is already stopping.
    let _ = control::ask(layout, &Request::Down);
    servers.join().map_err(|_| anyhow!("the supervisor panicked"))??;
    let mut report = played.context("the stack was stopped before it was ready")??;
    report.load_average = load_average;
    report.show();
    let path = results::save(results, "elastic", |_| report.json())?;
    let picture = path.with_extension("svg");
    std::fs::write(&picture, picture::draw(&report)).with_context(|| format!("cannot write {}", picture.display()))?;
    println!("results  {}\npicture  {}", path.display(), picture.display());
    Ok(())
}

fn play(layout: &Layout, args: &Args, binaries: &Path, cancelled: &Cancelled) -> Result<Report> {
    let load = Load::of(Server::new(([127, 0, 0, 1], layout.ports.edge()).into(), None)?)?;
    load.register()?;
    let capacity = Capacity::measure(layout, &load, f64::from(args.millicores) / 1000.0)?;
    println!("{capacity}");
    let phases = phases(args, &capacity);
    await_views(layout)?;
    cancelled.check()?;
    let begun = Instant::now();
    let ended = Arc::new(AtomicBool::new(false));
    let (moves, report) = thread::scope(|scope| {
        let watching = scope.spawn(|| Watch::run(layout, begun, || ended.load(Ordering::Relaxed)));
        let moving = scope.spawn(|| moves(layout, args, binaries, begun, &phases, cancelled));
        let answers = load.run(&phases, begun, || cancelled.is_set());
        ended.store(true, Ordering::Relaxed);
        let watch = watching.join().map_err(|_| anyhow!("the watch panicked"));
        let moves = moving.join().map_err(|_| anyhow!("the moves panicked"));
        (moves, watch.map(|watch| Report::new(capacity, phases.clone(), &answers, watch)))
    });
    cancelled.check()?;
    Ok(Report { moves: moves??, ..report? })
}

/// Returns the phases of a run.
fn phases(args: &Args, capacity: &Capacity) -> Vec<Phase> {
    let (seconds, ramp) = (f64::from(args.seconds), f64::from(args.ramp).min(f64::from(args.seconds) / 2.0));
    let phase = |name, share: f64, ramp: f64, rush: Option<Kind>| {
        let load = |kind, most: f64| match rush == Some(kind) {
            true => args.rush * most,
            false => args.steady * capacity.served(kind),
        };
        let reads = load(Kind::Read, capacity.reads.per_second);
        let writes = load(Kind::Write, capacity.writes.per_second);
        Phase { name, seconds: (share * seconds).ceil(), ramp, reads, writes, rush }
    };
    vec![
        phase("steady", 0.75, 0.0, None),
        phase("read rush", 1.0, ramp, Some(Kind::Read)),
        phase("calm", 1.0, 0.0, None),
        phase("write rush", 1.0, ramp, Some(Kind::Write)),
        phase("calm again", 1.5, 0.0, None),
        phase(DEPLOY, 0.75, 0.0, None),
        phase("sudden rush", 0.5, 0.0, Some(Kind::Read)),
        phase("calm at last", 0.75, 0.0, None),
        phase(SPARE, 0.25, 0.0, None),
        phase("sudden, spare", 0.5, 0.0, Some(Kind::Read)),
    ]
}

/// Scales by the rules, and replaces the programs in between.
fn moves(
    layout: &Layout,
    args: &Args,
    binaries: &Path,
    begun: Instant,
    phases: &[Phase],
    cancelled: &Cancelled,
) -> Result<Vec<Move>> {
    let mut moves = Vec::new();
    let at = || begun.elapsed().as_secs_f64();
    let scale = |least: u16, until: f64, moves: &mut Vec<Move>| {
        let is_over = || cancelled.is_set() || at() > until;
        let rules = Autoscale::between(1, args.at_most, args.hurry).keeping(Service::QueryApi, least);
        rules.run(layout, is_over, |change| {
            let (ended, of) = (at(), (change.service, change.from, change.to));
            moves.push(Move {
                at: ended - change.took.as_secs_f64(),
                ended,
                what: change.to_string(),
                change: Some(of),
            });
        })
    };
    let length = |phases: &[Phase]| phases.iter().map(|phase| phase.seconds).sum::<f64>();
    let begin = |name| length(&phases[..phases.iter().position(|phase| phase.name == name).unwrap_or(phases.len())]);
    scale(1, begin(DEPLOY), &mut moves)?;
    if !cancelled.is_set() {
        let from = at();
        deploy::replace_all(layout, binaries, |what, took| {
            let ended = at();
            moves.push(Move { at: ended - took.as_secs_f64(), ended, what: what.to_owned(), change: None });
        })?;
        moves.push(Move { at: from, ended: at(), what: WHOLE.to_owned(), change: None });
    }
    scale(1, begin(SPARE), &mut moves)?;
    scale(2.min(args.at_most), length(phases), &mut moves)?;
    Ok(moves)
}
