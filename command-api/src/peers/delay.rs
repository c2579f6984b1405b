//! How long a message lay somewhere before it was read: in a network, or at a process that stood still.
//!
//! The clocks of two processes began at different times. Of the messages of one link the quickest tells how far they are
//! apart, within what it took itself.

use tokio::time::Instant;

/// Clocks run differently fast, by much less than a thousandth: so much more the quickest message may seem to take.
const DRIFT: i64 = 1000;

/// What is known of one link, in microseconds.
#[derive(Debug)]
pub(super) struct Delays {
    begun: Instant,
    /// When the last message was read, and how long the quickest one seems to have taken by then.
    quickest: Option<(i64, i64)>,
}

impl Delays {
    /// To be called before the other side begins to count.
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), quickest: None }
    }

    /// Returns for how long the message that is read now was on its way. Of the first one it may be too much, by what the
    /// link took to begin.
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
    fn what_lay_somewhere_is_told_apart_from_clocks_that_began_at_different_times() {
        for began_later in [0, 700, 5 * SECOND] {
            let mut delays = Delays::new();
            let mut took = |sent: i64, delay: i64| delays.at(began_later + sent + delay, sent);
            took(SECOND, 300);
            assert_eq!(took(2 * SECOND, 300), 0);
            assert!(took(3 * SECOND, 4 * SECOND).abs_diff(4_000_000) < 10_000, "its reader stood still");
            assert!(took(8 * SECOND, 800) < 1_000);
        }
    }

    #[test]
    fn the_first_message_too_is_late_where_its_reader_stood_still() {
        let mut delays = Delays::new();
        assert_eq!(delays.at(5 * SECOND, 10), 5_000_000 - 10);
        assert_eq!(delays.at(5 * SECOND + 20, 30), 0, "the next one was quicker");
    }

    #[test]
    fn a_clock_that_runs_faster_makes_no_message_late() {
        let mut delays = Delays::new();
        for second in 1..100_000 {
            // A ten-thousandth, for a day.
            let late = delays.at(second * SECOND + second * 100, second * SECOND);
            assert!(second == 1 || late < 1_000, "{late} after {second} s");
        }
    }
}
