//! Checks this instance's clock against the clocks of Kafka's brokers.
//!
//! A record keeps its owner's time permanently, and no later record carries an earlier time, so an owner with a wrong
//! clock must be detected before it writes. Brokers timestamp the records of the topic [`schemas::topic::clock`];
//! between these measurements the monotonic clock continues, so that a jump of the wall clock is detected at once.
//!
//! Invariant: nothing is decided at a time that differs from the brokers' by more than [`MAX_SKEW`], as far as theirs
//! is known.

mod asking;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use chassis::clock::now_ms;
use chassis::kafka::KafkaSettings;
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use domain::TimeMs;
use schemas::topic::LogTopic;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::partition::ClockTrust;

/// Maximum difference from the brokers' time. Two owners' clocks then differ by two minutes at most, the time for which
/// keys are kept beyond the window in which they can be repeated.
const MAX_SKEW: Duration = Duration::from_secs(60);
/// Difference within which a wrong clock is trusted again; below [`MAX_SKEW`], so that trust does not flap.
const RIGHT_WITHIN: Duration = Duration::from_secs(30);
/// Difference from which on a warning is logged. Synchronized machines differ by milliseconds, so this one is not.
const SUSPICIOUS: Duration = Duration::from_secs(5);
/// Time after the start during which nothing is claimed unless the brokers' time is known.
const FIRST_WITHIN: Duration = Duration::from_secs(3);
const JUDGE_EVERY: Duration = Duration::from_secs(1);
const UNKNOWN: i64 = i64::MIN;

/// The checked clock. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    shared: Arc<Shared>,
    trust: watch::Receiver<Option<ClockTrust>>,
}

#[derive(Debug)]
struct Shared {
    begun: Instant,
    /// The brokers' time, in microseconds since 1970, at `begun`.
    begun_at: AtomicI64,
    is_wrong: AtomicBool,
}

impl Clock {
    /// Starts the measurements. Returns the clock and a future that evaluates them until shutdown.
    pub(crate) fn start(
        kafka: &KafkaSettings,
        topic: &LogTopic,
        metrics: Arc<Metrics>,
        ready: Condition,
        shutdown: Shutdown,
    ) -> std::io::Result<(Self, impl Future<Output = ()> + Send + 'static)> {
        let (sender, trust) = watch::channel(None);
        let clock = Self { shared: Arc::new(Shared::new()), trust };
        asking::start(kafka.clone(), topic.clone(), &clock.shared)?;
        let watching = watch(clock.shared.clone(), sender, metrics, ready, shutdown);
        Ok((clock, watching))
    }

    /// Returns the time and the trust in it.
    pub(crate) fn look(&self) -> (TimeMs, ClockTrust) {
        let (now, instant) = (TimeMs(now_ms()), Instant::now());
        (now, self.shared.judge(self.shared.skew_ms(now, instant)).unwrap_or(ClockTrust::Unknown))
    }

    /// Returns whether a partition may be claimed: the clock agrees with the brokers', or they do not report their
    /// time.
    pub(crate) fn may_own(&self) -> bool {
        matches!(*self.trust.borrow(), Some(ClockTrust::Right | ClockTrust::Unknown))
    }

    /// Waits until the trust in the clock changes, and returns it.
    pub(crate) async fn changed(&mut self) -> ClockTrust {
        match self.trust.changed().await {
            Ok(()) => self.trust.borrow_and_update().unwrap_or(ClockTrust::Unknown),
            // The process is shutting down.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Shared {
    fn new() -> Self {
        Self { begun: Instant::now(), begun_at: AtomicI64::new(UNKNOWN), is_wrong: AtomicBool::new(false) }
    }

    /// Takes the brokers' timestamps, each with the times at which its record was sent and its delivery report
    /// received. The median counts, so that a broker with a wrong clock is outvoted by two others.
    fn told(&self, mut stamps: Vec<(Instant, Instant, i64)>) {
        let begun_at = |(sent, came, stamp_ms): &(Instant, Instant, i64)| {
            let at = (*sent - self.begun + (*came - self.begun)) / 2;
            stamp_ms.saturating_mul(1000).saturating_sub(micros(at))
        };
        stamps.sort_by_key(begun_at);
        if let Some(middle) = stamps.get(stamps.len() / 2) {
            self.begun_at.store(begun_at(middle), Ordering::Relaxed);
        }
    }

    /// Returns how far the wall clock is ahead of the brokers', or `None` if theirs is unknown.
    fn skew_ms(&self, now: TimeMs, instant: Instant) -> Option<i64> {
        let begun_at = self.begun_at.load(Ordering::Relaxed);
        let theirs = || begun_at.saturating_add(micros(instant - self.begun)) / 1000;
        (begun_at != UNKNOWN).then(|| i64::try_from(now.0).unwrap_or(i64::MAX).saturating_sub(theirs()))
    }

    /// Returns the trust that this skew warrants, or `None` if it is too early to judge.
    fn judge(&self, skew_ms: Option<i64>) -> Option<ClockTrust> {
        let Some(skew_ms) = skew_ms else {
            return (self.begun.elapsed() > FIRST_WITHIN).then_some(ClockTrust::Unknown);
        };
        let bound = if self.is_wrong.load(Ordering::Relaxed) { RIGHT_WITHIN } else { MAX_SKEW };
        let is_wrong = Duration::from_millis(skew_ms.unsigned_abs()) > bound;
        self.is_wrong.store(is_wrong, Ordering::Relaxed);
        Some(if is_wrong { ClockTrust::Wrong } else { ClockTrust::Right })
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Publishes the trust in the clock, and reports it in the log, in the metric and in `/readyz`.
async fn watch(
    shared: Arc<Shared>,
    trust: watch::Sender<Option<ClockTrust>>,
    metrics: Arc<Metrics>,
    ready: Condition,
    shutdown: Shutdown,
) {
    let mut said = None;
    while !shutdown.is_requested() {
        let skew_ms = shared.skew_ms(TimeMs(now_ms()), Instant::now());
        let judged = shared.judge(skew_ms);
        trust.send_if_modified(|known| std::mem::replace(known, judged) != judged);
        if let Some(skew_ms) = skew_ms {
            metrics.clock_skew(skew_ms);
        }
        let skew_secs = skew_ms.unwrap_or(0) as f64 / 1000.0;
        let is_suspicious = skew_ms.is_some_and(|skew_ms| Duration::from_millis(skew_ms.unsigned_abs()) > SUSPICIOUS);
        match judged {
            None => ready.waiting("waiting for the time of Kafka's brokers"),
            Some(ClockTrust::Wrong) => ready.waiting(format!(
                "the clock differs from that of Kafka's brokers by {skew_secs:+.1} s; no commands are decided until it is \
                 within {} s",
                RIGHT_WITHIN.as_secs()
            )),
            Some(ClockTrust::Right | ClockTrust::Unknown) => ready.ready(),
        }
        let now_said = Some((judged, is_suspicious));
        if said != now_said {
            said = now_said;
            match judged {
                Some(ClockTrust::Wrong) => {
                    tracing::error!(skew_secs, "the clock is wrong; releasing all partitions")
                }
                Some(ClockTrust::Unknown) => {
                    tracing::warn!("Kafka's brokers do not report their time; the clock is unchecked")
                }
                Some(ClockTrust::Right) if is_suspicious => {
                    tracing::warn!(skew_secs, "the clock differs from that of Kafka's brokers")
                }
                Some(ClockTrust::Right) => tracing::info!(skew_secs, "the clock agrees with that of Kafka's brokers"),
                None => {}
            }
        }
        let pause = if judged.is_none() { JUDGE_EVERY / 50 } else { JUDGE_EVERY };
        shutdown.sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOON_MS: i64 = 1_800_000_000_000;

    fn time(ms: i64) -> TimeMs {
        TimeMs(ms.cast_unsigned())
    }

    /// Returns the state after brokers stamped one record each, a second after the start and halfway between sending
    /// and report.
    fn told(stamps: &[i64]) -> Shared {
        let shared = Shared::new();
        let stamp = |stamp| (shared.begun, shared.begun + 2 * SECOND, NOON_MS + stamp);
        shared.told(stamps.iter().copied().map(stamp).collect());
        shared
    }

    #[test]
    fn the_clock_is_compared_with_the_brokers_as_time_goes_on() {
        let shared = told(&[0]);
        for (secs, ahead_ms) in [(1, 0), (1, -70_000), (500, 0), (500, 90_000)] {
            let now = NOON_MS + (secs - 1) * 1000 + ahead_ms;
            let instant = shared.begun + Duration::from_secs(secs.cast_unsigned());
            assert_eq!(shared.skew_ms(time(now), instant), Some(ahead_ms), "after {secs} s");
        }
    }

    #[test]
    fn a_broker_whose_clock_is_wrong_is_outvoted() {
        for wrong in [[0, 1, 3_600_000], [-3_600_000, 0, 1], [1, 3_600_000, 0]] {
            let shared = told(&wrong);
            let skew = shared.skew_ms(time(NOON_MS), shared.begun + SECOND).unwrap();
            assert!(skew.abs() <= 1, "{wrong:?}: {skew}");
        }
    }

    #[test]
    fn a_clock_is_wrong_on_either_side_of_the_bound_and_right_again_well_within_it() {
        let shared = told(&[0]);
        for (skew_ms, trust) in [
            (0, ClockTrust::Right),
            (60_000, ClockTrust::Right),
            (60_001, ClockTrust::Wrong),
            (30_001, ClockTrust::Wrong),
            (30_000, ClockTrust::Right),
            (-60_000, ClockTrust::Right),
            (-60_001, ClockTrust::Wrong),
            (-30_000, ClockTrust::Right),
        ] {
            assert_eq!(shared.judge(Some(skew_ms)), Some(trust), "{skew_ms}");
        }
    }

    #[test]
    fn a_clock_is_not_judged_before_the_brokers_had_time_to_answer() {
        let shared = Shared::new();
        assert_eq!((shared.skew_ms(time(NOON_MS), shared.begun), shared.judge(None)), (None, None));
        let shared = Shared { begun: Instant::now() - 2 * FIRST_WITHIN, ..shared };
        assert_eq!(shared.judge(None), Some(ClockTrust::Unknown));
    }
}
