//! Partitions that do not answer: of the commands for one of them a bounded number waits, and the rest is refused at once.
//!
//! An owner that is gone or stands still would otherwise gather commands until the instance has no place left for those of
//! other partitions. One that is slow answers some of them, and is not silent.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use schemas::answers::Answer;
use tokio::time::{Instant, timeout_at};

use crate::dispatcher::is_unavailable;

/// A partition is silent when a command has waited this long and no other one was answered meanwhile, until one is.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// Commands that may wait for a silent partition.
const MAX_WAITING: usize = 256;
/// Longer than a fail-over takes.
const LONG: Duration = Duration::from_secs(8);
/// Commands that may wait for a partition that is silent for so long: to notice that it answers again.
const MAX_PROBES: usize = 16;

/// What is known of one partition.
#[derive(Debug)]
pub(crate) struct Outage {
    begun: Instant,
    /// Milliseconds from `begun`; 0: it answers.
    since_ms: AtomicU64,
    /// How often its owner has answered.
    answers: AtomicU64,
    waiting: AtomicUsize,
}

/// A command that waits for a silent partition.
#[derive(Debug)]
struct Place<'a>(&'a Outage);

impl Outage {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            since_ms: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for the outcome of a command until its deadline, unless the partition is silent, or turns out to be, and enough
    /// others wait.
    pub(crate) async fn wait(&self, deadline: Instant, mut outcome: Pin<&mut impl Future<Output = Answer>>) -> Answer {
        let was_silent = self.is_known();
        if !was_silent {
            let (answers, limit) = (self.answers.load(Ordering::Relaxed), Instant::now() + ANSWERS_WITHIN);
            if let Ok(answer) = timeout_at(limit.min(deadline), &mut outcome).await {
                return self.heard(answer);
            }
            // One who waits for less learns nothing of the partition.
            if deadline <= limit {
                return Answer::OutcomeUnknown;
            }
            self.begin(answers);
        }
        let _place = match self.is_known().then(|| self.place()) {
            // Nothing of it was sent.
            Some(None) if was_silent => return Answer::NoOwner,
            Some(None) => return Answer::OutcomeUnknown,
            place => place,
        };
        self.heard(timeout_at(deadline, outcome).await.unwrap_or(Answer::OutcomeUnknown))
    }

    fn is_known(&self) -> bool {
        self.since_ms.load(Ordering::Relaxed) > 0
    }

    /// Notes that a command had no outcome in time. `answers`: before it.
    fn begin(&self, answers: u64) {
        if self.answers.load(Ordering::Relaxed) != answers {
            return;
        }
        let now = self.elapsed_ms();
        // Whoever noticed it first tells since when.
        let _ = self.since_ms.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes an outcome: a decision of the partition's owner ends the silence. A refusal does not, because it may come from in
    /// front of an owner that stands still.
    pub(crate) fn heard(&self, answer: Answer) -> Answer {
        if !is_unavailable(&answer) || answer == Answer::Quarantined {
            self.answers.fetch_add(1, Ordering::Relaxed);
            self.since_ms.store(0, Ordering::Relaxed);
        }
        answer
    }

    /// Returns a place among those that wait; `None`: enough wait.
    fn place(&self) -> Option<Place<'_>> {
        let silent_ms = self.elapsed_ms().saturating_sub(self.since_ms.load(Ordering::Relaxed));
        let most = if Duration::from_millis(silent_ms) < LONG { MAX_WAITING } else { MAX_PROBES };
        // Counted before it is compared, so that no two take the last place.
        let place = Place(self);
        (self.waiting.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;

    use super::*;

    fn answers(outage: &Outage) -> u64 {
        outage.answers.load(Ordering::Relaxed)
    }

    fn all_places(outage: &Outage) -> Vec<Place<'_>> {
        std::iter::from_fn(|| outage.place()).collect()
    }

    #[test]
    fn fewer_commands_wait_for_a_partition_that_is_silent_for_long() {
        let outage = Outage::new();
        outage.begin(0);
        assert_eq!(all_places(&outage).len(), MAX_WAITING);
        assert_eq!(all_places(&outage).len(), MAX_WAITING, "places are given back");
        let outage = Outage { begun: Instant::now() - 2 * LONG, ..Outage::new() };
        outage.begin(0);
        assert_eq!(all_places(&outage).len(), MAX_WAITING);
        let outage = Outage { since_ms: AtomicU64::new(1), ..outage };
        outage.begin(0);
        assert_eq!(all_places(&outage).len(), MAX_PROBES, "it counts from the first time");
    }

    #[test]
    fn a_decision_of_the_owner_ends_it_and_a_refusal_does_not() {
        let outage = Outage::new();
        outage.begin(0);
        let overloaded = Answer::Overloaded { detail: "busy".into() };
        for answer in [Answer::NoOwner, Answer::Misdirected, Answer::OutcomeUnknown, overloaded] {
            outage.heard(answer);
            assert!(outage.is_known());
        }
        for answer in [Answer::NoSuchCommand, Answer::Quarantined] {
            outage.begin(answers(&outage));
            assert!(outage.is_known());
            outage.heard(answer);
            assert!(!outage.is_known());
        }
        outage.begin(answers(&outage) - 1);
        assert!(!outage.is_known(), "it has answered another command meanwhile");
    }

    #[tokio::test]
    async fn only_who_waits_long_enough_finds_a_partition_silent() {
        let outage = Outage::new();
        for wait in [Duration::ZERO, ANSWERS_WITHIN / 10] {
            let answer = outage.wait(Instant::now() + wait, pin!(pending())).await;
            assert_eq!((answer, outage.is_known()), (Answer::OutcomeUnknown, false), "it waited for {wait:?}");
        }
        let answer = outage.wait(Instant::now() + 2 * ANSWERS_WITHIN, pin!(pending())).await;
        assert_eq!((answer, outage.is_known()), (Answer::OutcomeUnknown, true));
        let _all = all_places(&outage);
        let answer = outage.wait(Instant::now() + ANSWERS_WITHIN, pin!(pending())).await;
        assert_eq!(answer, Answer::NoOwner, "nothing of it was sent");
    }
}
