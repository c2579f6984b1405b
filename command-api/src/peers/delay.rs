//! Delay of a message before it was read, in a network or at a process that hung.
//!
//! The clocks of two processes begin at different times. The quickest message of a link shows how far they are apart,
//! up to the time that it took itself.

use tokio::time::Instant;

/// Reciprocal of the rate at which the quickest message may seem to slow down. Two clocks drift apart by much less than
/// a thousandth.
const DRIFT: i64 = 1000;

/// Delays of one link, in microseconds.
#[derive(Debug)]
pub(super) struct Delays {
    begun: Instant,
    /// Time at which the last message was read, and the shortest time that a message seems to have taken by then.
    quickest: Option<(i64, i64)>,
}

impl Delays {
    /// Starts the clock of this side. Must be called before the other side starts its own.
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), quickest: None }
    }

    /// Returns the delay of the message that is being read now. For the first one it may be too long, by the time that
    /// the link took to open.
    pub(super) fn of(&mut self, sent_us: u64) -> u64 {
        let now = i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.at(now, i64::try_from(sent_us).unwrap_or(i64::MAX))
    }

    fn at(&mut self, now: i64, sent: i64) -> u64 {
        let took = now.saturating_sub(sent);
        let apart = self.quickest.map_or(0, |(then, quickest)| quickest + (now - then) / DRIFT);
        let quickest = if self.quickest.is_none() { took } else { took.min(apart) };
        self.quickest = Some((now, quickest));
        u64::try_from(took.saturating_sub(apart)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    #[test]
    fn a_delay_is_distinguished_from_clocks_that_began_at_different_times() {
        for began_later in [0, 700, 5 * SECOND] {
            let mut delays = Delays::new();
            let mut took = |sent: i64, delay: i64| delays.at(began_later + sent + delay, sent);
            took(SECOND, 300);
            assert_eq!(took(2 * SECOND, 300), 0);
            assert!(took(3 * SECOND, 4 * SECOND).abs_diff(4_000_000) < 10_000, "its reader hung");
            assert!(took(8 * SECOND, 800) < 1_000);
        }
    }

    #[test]
    fn the_first_message_is_late_too_if_its_reader_hung() {
        let mut delays = Delays::new();
        assert_eq!(delays.at(5 * SECOND, 10), 5_000_000 - 10);
        assert_eq!(delays.at(5 * SECOND + 20, 30), 0, "the next one was quicker");
    }

    #[test]
    fn a_clock_that_runs_faster_makes_no_message_late() {
        let mut delays = Delays::new();
        for second in 1..100_000 {
            // Faster by a ten-thousandth, for a day.
            let late = delays.at(second * SECOND + second * 100, second * SECOND);
            assert!(second == 1 || late < 1_000, "{late} after {second} s");
        }
    }
}
