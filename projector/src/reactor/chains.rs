//! Steps, each with what it comes from, taken in waves until none is left.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use domain::reactions::{Alarm, Outcome, Step, react};
use domain::{Event, TimeMs};
use schemas::record::Commit;

use super::commands::{Answered, Commands};
use crate::metrics::Metrics;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A step that is to be taken, and where it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) step: Step,
    /// When the event happened: the time that the keys of its steps tell.
    pub(crate) at: TimeMs,
    /// The event: `{partition}-{offset}-{version}`.
    pub(crate) cause: Arc<str>,
    /// Whatever the caller knows it by.
    pub(crate) source: usize,
}

/// What cannot be done, however often it is tried.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) source: usize,
    pub(crate) reason: String,
}

/// An alarm of an aggregate, by its name: when, or not any more; and the event that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) alarm: Alarm,
    pub(crate) aggregate: String,
    pub(crate) due: Option<TimeMs>,
    pub(crate) cause: Arc<str>,
}

#[derive(Debug, Default)]
pub(crate) struct Caused {
    pub(crate) chains: Vec<Chain>,
    pub(crate) alarms: Vec<Set>,
}

/// What the events of a commit cause.
pub(crate) fn of(
    commit: &Commit<'_>,
    (partition, offset): (u32, i64),
    payment_window_ms: u64,
    source: usize,
) -> Caused {
    let mut caused = Caused::default();
    let at = TimeMs(commit.at_ms);
    let first = commit.version + 1 - commit.events.len() as u64;
    let (kind, id) = commit.aggregate.split_once('/').unwrap_or_default();
    // Nothing follows from what products do, and that is most of what happens.
    if kind == "product" {
        return caused;
    }
    for (event, version) in commit.events.iter().zip(first..) {
        let event: Event = event.upcast();
        let reaction = react(id, &event, at, commit.cause.is_some(), payment_window_ms);
        let cause: Arc<str> = format!("{partition}-{offset}-{version}").into();
        let chain = |step| Chain { step, at, cause: cause.clone(), source };
        caused.chains.extend(reaction.steps.into_iter().map(chain));
        caused.alarms.extend(reaction.alarms.into_iter().map(|(alarm, due)| Set {
            alarm,
            aggregate: commit.aggregate.to_string(),
            due,
            cause: cause.clone(),
        }));
    }
    caused
}

/// Every chain to its end. Returns only when nothing is left to be tried again.
pub(crate) async fn finish(commands: &Commands, metrics: Option<&Metrics>, mut chains: Vec<Chain>) -> Vec<Failed> {
    let mut failed = Vec::new();
    let mut pause = FIRST_PAUSE;
    while !chains.is_empty() {
        let answers = commands.send(&chains).await;
        let sent = chains.len();
        let mut again = 0;
        let mut next = Vec::with_capacity(sent);
        for (chain, answer) in chains.into_iter().zip(answers) {
            metrics.inspect(|metrics| metrics.step_answered(&answer));
            let outcome = match &answer {
                Answered::Accepted => Outcome::Accepted,
                Answered::Rejected(reason) => Outcome::Rejected(reason),
                Answered::Later => {
                    again += 1;
                    next.push(chain);
                    continue;
                }
                Answered::Refused(reason) => {
                    failed.push(Failed { source: chain.source, reason: reason.clone() });
                    continue;
                }
            };
            match chain.step.then(outcome) {
                Some(step) => next.push(Chain { step, ..chain }),
                None => drop(metrics.inspect(|metrics| metrics.reacted(since(chain.at)))),
            }
        }
        chains = next;
        if again == sent {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        } else {
            pause = FIRST_PAUSE;
        }
    }
    failed.dedup_by_key(|failed| failed.source);
    failed
}

fn since(at: TimeMs) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(at.0))
}
