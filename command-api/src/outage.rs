//! Limits the commands that wait for a partition that does not answer, and refuses the rest at once.
//!
//! Commands for an owner that is gone or hangs would otherwise pile up until the instance had no place left for other
//! partitions. A slow owner still answers some of its commands, so its partition does not become silent.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use schemas::answers::Answer;
use tokio::time::{Instant, timeout_at};

/// Time after which a waiting command makes its partition silent if no other command was answered meanwhile. The next
/// answer ends the silence.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// Maximum number of commands that wait for a silent partition.
const MAX_WAITING: usize = 256;
/// Silence that is longer than any failover.
const LONG: Duration = Duration::from_secs(8);
/// Maximum number of commands that wait for a partition that has been silent for [`LONG`]. They notice when it answers
/// again.
const MAX_PROBES: usize = 16;

/// Responsiveness of one partition.
#[derive(Debug)]
pub(crate) struct Outage {
    begun: Instant,
    /// Start of the silence in milliseconds after `begun`; 0 while the partition answers.
    since_ms: AtomicU64,
    /// Number of answers from the partition's owner.
    answers: AtomicU64,
    waiting: AtomicUsize,
}

/// A place among the commands that wait for a silent partition.
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

    /// Waits for the outcome of a command until its deadline. Refuses it if the partition is silent, or becomes so, and
    /// enough others wait.
    pub(crate) async fn wait(&self, deadline: Instant, mut outcome: Pin<&mut impl Future<Output = Answer>>) -> Answer {
        let was_silent = self.is_known();
        if !was_silent {
            let (answers, limit) = (self.answers.load(Ordering::Relaxed), Instant::now() + ANSWERS_WITHIN);
            if let Ok(answer) = timeout_at(limit.min(deadline), &mut outcome).await {
                return self.heard(answer);
            }
            // A command with a shorter deadline is no evidence of silence.
            if deadline <= limit {
                return Answer::OutcomeUnknown;
            }
            self.begin(answers);
        }
        let _place = match self.is_known().then(|| self.place()) {
            // Nothing was sent.
            Some(None) if was_silent => return Answer::NoOwner,
            Some(None) => return Answer::OutcomeUnknown,
            place => place,
        };
        self.heard(timeout_at(deadline, outcome).await.unwrap_or(Answer::OutcomeUnknown))
    }

    fn is_known(&self) -> bool {
        self.since_ms.load(Ordering::Relaxed) > 0
    }

    /// Marks the partition as silent after a command had no outcome in time, unless `answers`, counted before it, has
    /// changed.
    fn begin(&self, answers: u64) {
        if self.answers.load(Ordering::Relaxed) != answers {
            return;
        }
        let now = self.elapsed_ms();
        // The first command to notice determines the start.
        let _ = self.since_ms.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Records an outcome. A decision of the partition's owner ends the silence; a refusal does not, because it may not
    /// come from the owner itself, which may hang.
    pub(crate) fn heard(&self, answer: Answer) -> Answer {
        if !answer.is_unavailable() || answer == Answer::Quarantined {
            self.answers.fetch_add(1, Ordering::Relaxed);
            self.since_ms.store(0, Ordering::Relaxed);
        }
        answer
    }

    /// Returns a place among the waiting commands, or `None` if enough wait.
    fn place(&self) -> Option<Place<'_>> {
        let silent_ms = self.elapsed_ms().saturating_sub(self.since_ms.load(Ordering::Relaxed));
        let most = if Duration::from_millis(silent_ms) < LONG { MAX_WAITING } else { MAX_PROBES };
        // Incremented before the comparison, so that no two commands take the last place.
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
        assert_eq!(all_places(&outage).len(), MAX_PROBES, "the silence counts from its first detection");
    }

    #[test]
    fn a_decision_of_the_owner_ends_the_silence_and_a_refusal_does_not() {
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
        assert!(!outage.is_known(), "the owner has answered another command meanwhile");
    }

    #[tokio::test]
    async fn only_a_command_that_waits_long_enough_finds_a_partition_silent() {
        let outage = Outage::new();
        for wait in [Duration::ZERO, ANSWERS_WITHIN / 10] {
            let answer = outage.wait(Instant::now() + wait, pin!(pending())).await;
            assert_eq!((answer, outage.is_known()), (Answer::OutcomeUnknown, false), "it waited for {wait:?}");
        }
        let answer = outage.wait(Instant::now() + 2 * ANSWERS_WITHIN, pin!(pending())).await;
        assert_eq!((answer, outage.is_known()), (Answer::OutcomeUnknown, true));
        let _all = all_places(&outage);
        let answer = outage.wait(Instant::now() + ANSWERS_WITHIN, pin!(pending())).await;
        assert_eq!(answer, Answer::NoOwner, "nothing was sent");
    }
}
