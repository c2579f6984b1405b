//! The stages of a test run, run one after the other, and their results.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

/// Selection of the tests to run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Scope {
    /// Afterwards run the end-to-end tests ten more times, five of them with busy cores, and the ignored tests
    #[arg(long)]
    all: bool,
    /// Number of additional runs of the end-to-end tests
    #[arg(long, requires = "all", default_value_t = 10, value_name = "NUMBER")]
    rounds: u32,
    /// Run only the ignored tests, which take long or install third-party tools
    #[arg(long, conflicts_with = "all")]
    ignored: bool,
    /// Run only the test of the manifests, which builds a control plane of Kubernetes
    #[arg(long, conflicts_with_all = ["all", "ignored", "filter"])]
    cluster: bool,
}

/// One run of the test runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    FirstGate,
    Round { number: u32, is_busy: bool },
    Ignored,
    Cluster,
}

impl Stage {
    /// Returns the packages and targets, as the runner's arguments.
    pub(super) fn selection(self) -> &'static [&'static str] {
        match self {
            Self::FirstGate | Self::Ignored => &["--workspace"],
            // All packages, as in the first gate: with fewer, crates get other features and are recompiled.
            Self::Round { .. } | Self::Cluster => &["--workspace", "--test", "it"],
        }
    }

    /// Returns the arguments that follow the filter.
    pub(super) fn options(self) -> &'static [&'static str] {
        match self {
            Self::FirstGate | Self::Round { .. } => &[],
            Self::Ignored => &["--", "--ignored"],
            Self::Cluster => &["--", "--ignored", "kubernetes::"],
        }
    }

    fn name(self) -> String {
        match self {
            Self::FirstGate => String::from("first gate"),
            Self::Round { number, is_busy: false } => format!("round {number}"),
            Self::Round { number, is_busy: true } => format!("round {number}, cores busy"),
            Self::Ignored => String::from("ignored tests"),
            Self::Cluster => String::from("manifests"),
        }
    }
}

/// Runs every stage, even after one has failed, prints the result of each, and succeeds if all of them did. `test`
/// returns `None` if the servers have ended; no further stage is run then.
pub(super) fn run(scope: &Scope, mut test: impl FnMut(Stage) -> Result<Option<ExitCode>>) -> Result<ExitCode> {
    let stages = stages(scope);
    let mut results = Vec::new();
    for stage in &stages {
        if stages.len() > 1 {
            println!("\n=== {} ({} of {}) ===", stage.name(), results.len() + 1, stages.len());
        }
        let begun = Instant::now();
        let code = match stage {
            Stage::Round { is_busy: true, .. } => beside_busy_cores(|| test(*stage))?,
            Stage::FirstGate | Stage::Round { .. } | Stage::Ignored | Stage::Cluster => test(*stage)?,
        };
        let Some(code) = code else { return Ok(ExitCode::FAILURE) };
        results.push((stage.name(), code, begun.elapsed()));
    }
    if results.len() > 1 {
        print_summary(&results);
    }
    let failed = results.into_iter().map(|(_, code, _)| code).find(|code| *code != ExitCode::SUCCESS);
    Ok(failed.unwrap_or(ExitCode::SUCCESS))
}

/// Returns the stages of a run. Rounds on busy cores follow the quiet ones, so that failures unrelated to load show up
/// first.
fn stages(scope: &Scope) -> Vec<Stage> {
    if scope.ignored {
        return vec![Stage::Ignored];
    }
    if scope.cluster {
        return vec![Stage::Cluster];
    }
    let mut stages = vec![Stage::FirstGate];
    if scope.all {
        let round = |number| Stage::Round { number, is_busy: number > scope.rounds / 2 };
        stages.extend((1..=scope.rounds).map(round));
        stages.push(Stage::Ignored);
    }
    stages
}

fn print_summary(results: &[(String, ExitCode, Duration)]) {
    println!();
    for (name, code, took) in results {
        let outcome = if *code == ExitCode::SUCCESS { "passed" } else { "FAILED" };
        println!("{name:<22} {outcome} in {:.0} s", took.as_secs_f64());
    }
    let failed = results.iter().filter(|(_, code, _)| *code != ExitCode::SUCCESS).count();
    println!("stages: {} passed, {failed} failed", results.len() - failed);
}

/// Runs `work` while one spinning thread per core competes with it.
fn beside_busy_cores<T>(work: impl FnOnce() -> T) -> T {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Scope = Scope { all: false, rounds: 10, ignored: false, cluster: false };

    #[test]
    fn the_second_gate_is_the_first_then_rounds_of_which_the_later_half_is_busy_then_the_ignored_tests() {
        let round = |number, is_busy| Stage::Round { number, is_busy };
        let all = Scope { all: true, rounds: 3, ..FIRST };
        let expected = [Stage::FirstGate, round(1, false), round(2, true), round(3, true), Stage::Ignored];
        assert_eq!(stages(&all), expected);
        assert_eq!(stages(&FIRST), [Stage::FirstGate]);
        assert_eq!(stages(&Scope { ignored: true, ..FIRST }), [Stage::Ignored]);
        assert_eq!(stages(&Scope { cluster: true, ..FIRST }), [Stage::Cluster]);
    }

    #[test]
    fn a_failed_stage_fails_the_run_but_does_not_stop_it() {
        let mut ran = 0;
        let code = run(&Scope { all: true, rounds: 2, ..FIRST }, |stage| {
            ran += 1;
            let fails = stage == Stage::Round { number: 2, is_busy: true };
            Ok(Some(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS }))
        });
        assert_eq!((code.unwrap(), ran), (ExitCode::FAILURE, 4));
    }

    #[test]
    fn nothing_is_run_without_servers() {
        let mut ran = 0;
        let code = run(&Scope { all: true, rounds: 2, ..FIRST }, |_| {
            ran += 1;
            Ok(None)
        });
        assert_eq!((code.unwrap(), ran), (ExitCode::FAILURE, 1));
    }
}
