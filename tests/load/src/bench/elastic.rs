//! `cargo stack bench elastic`: a read rush, then a write rush, on a stack whose instances are bounded and scale by
//! themselves, and at last the programs are replaced by themselves, while clients send at fixed rates.
//!
//! A request's latency counts from the time at which it was due, whether a connection was free or not. The rates follow
//! from what one instance of each tier serves, which is measured first.

mod load;
mod watch;
mod report;
mod picture;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use stack::autoscale::Autoscale;
use stack::control::{self, Request};
use stack::layout::Layout;
use stack::services::{self, Profile};
use stack::size::Wanted;
use stack::supervisor::{Supervisor, Words};
use stack::{deploy, up};

use super::{Cancelled, results};
use crate::wire::Server;
use load::{Kind, Load};
use report::Report;
use watch::Watch;

/// Share of what one instance serves that is the steady load, and that of a rush.
const STEADY: f64 = 0.4;
const RUSH: f64 = 2.0;
const CALIBRATION: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Seconds of each phase: steady, read rush, steady, write rush, steady, deploy
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(5..))]
    seconds: u32,
    /// Thousandths of a core that each instance may use
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(50..))]
    millicores: u32,
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

/// A part of the run, with requests per second.
#[derive(Debug, Clone, Serialize)]
struct Phase {
    name: &'static str,
    seconds: f64,
    reads: f64,
    writes: f64,
}

/// A change of the instances, in seconds since the beginning.
#[derive(Debug, Clone, Serialize)]
struct Move {
    at: f64,
    ended: f64,
    what: String,
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
    let [reads, writes] = [Kind::Read, Kind::Write].map(|kind| load.peak(kind, CALIBRATION));
    println!("one instance with {} m cores serves {reads:.0} reads/s or {writes:.0} writes/s", args.millicores);
    let phases = phases(f64::from(args.seconds), reads, writes);
    let (begun, autoscaling) = (Instant::now(), phases[..5].iter().map(|phase| phase.seconds).sum::<f64>());
    let ended = Arc::new(AtomicBool::new(false));
    let (moves, report) = thread::scope(|scope| {
        let watching = scope.spawn(|| Watch::run(layout, begun, || ended.load(Ordering::Relaxed)));
        let moving = scope.spawn(|| moves(layout, args, binaries, begun, autoscaling, cancelled));
        let answers = load.run(&phases, begun, || cancelled.is_set());
        ended.store(true, Ordering::Relaxed);
        let watch = watching.join().map_err(|_| anyhow!("the watch panicked"));
        let moves = moving.join().map_err(|_| anyhow!("the moves panicked"));
        (moves, watch.map(|watch| Report::new(phases.clone(), answers, watch)))
    });
    cancelled.check()?;
    Ok(Report { moves: moves??, ..report? })
}

fn phases(seconds: f64, reads: f64, writes: f64) -> Vec<Phase> {
    let phase = |name, of_reads: f64, of_writes: f64| Phase {
        name,
        seconds,
        reads: reads * of_reads,
        writes: writes * of_writes,
    };
    let steady = |name| phase(name, STEADY, STEADY);
    vec![
        steady("steady"),
        phase("read rush", RUSH, STEADY),
        steady("calm"),
        phase("write rush", STEADY, RUSH),
        steady("calm again"),
        steady("deploy"),
    ]
}

/// Scales by the rules for so many seconds, and then replaces the programs.
fn moves(
    layout: &Layout,
    args: &Args,
    binaries: &Path,
    begun: Instant,
    autoscaling: f64,
    cancelled: &Cancelled,
) -> Result<Vec<Move>> {
    let mut moves = Vec::new();
    let at = || begun.elapsed().as_secs_f64();
    let is_over = || cancelled.is_set() || at() > autoscaling;
    Autoscale::between(1, args.at_most, args.hurry).run(layout, is_over, |change| {
        let ended = at();
        moves.push(Move { at: ended - change.took.as_secs_f64(), ended, what: change.to_string() });
    })?;
    if !cancelled.is_set() {
        let from = at();
        deploy::replace_all(layout, binaries, |what, took| {
            let ended = at();
            moves.push(Move { at: ended - took.as_secs_f64(), ended, what: what.to_owned() });
        })?;
        moves.push(Move { at: from, ended: at(), what: String::from("the whole deployment") });
    }
    Ok(moves)
}
