//! Limits of the load that a rebuild adds to live work.
//!
//! A thread does one piece of work after the other, here or in Postgres, so it keeps one core busy at most. After each
//! it pauses in proportion to how long the piece took. So the limits need no knowledge of the machine, and if live work
//! slows the pieces down, the pauses grow with them.
//!
//! Absent on purpose: a lower scheduling priority. It would not reach Postgres's processes, and it would still be in
//! effect at the switch, for which live work waits.

use std::num::NonZero;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::log_reader::BatchLimits;

/// Maximum length of a pause, however long Postgres took for the piece before it.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Limits of the work that a rebuild does at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Number of threads that fold.
    pub threads: NonZero<usize>,
    /// Part of the time in which each thread works.
    pub share: Share,
}

/// Part of the time, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u32);

#[derive(Debug, thiserror::Error)]
#[error("share must be a percentage from 1 to 100")]
pub struct NoShare;

/// Maximum size of a piece of work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Number of records that are folded.
    pub(super) records: usize,
    /// Number of rows that one transaction writes.
    pub(super) changed_rows: usize,
}

impl Default for Limits {
    /// Returns half of the cores, for half of the time: live work keeps three quarters of the machine, or half of a
    /// single core.
    fn default() -> Self {
        Self { threads: NonZero::new(cores().get() / 2).unwrap_or(NonZero::<usize>::MIN), share: Share(50) }
    }
}

impl Limits {
    /// Returns the limits of a machine that has nothing else to do.
    pub fn fast() -> Self {
        Self { threads: cores(), share: Share::ALL }
    }

    /// Returns the size of a piece. Large pieces cost less in total: a row that many records change is written less
    /// often. A small one is soon over, for live work that needs its core, and for a live commit that waits for the
    /// disk behind it.
    pub(super) fn piece(self) -> Piece {
        match self.share {
            Share::ALL => Piece { records: BatchLimits::MAX.records, changed_rows: 20_000 },
            _ => Piece { records: 1_000, changed_rows: 4_000 },
        }
    }
}

fn cores() -> NonZero<usize> {
    std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

impl Share {
    pub const ALL: Self = Self(100);

    /// Returns this share of `time`.
    pub(super) fn of(self, time: Duration) -> Duration {
        time * self.0 / 100
    }

    /// Returns the length of the pause after a piece that took this long.
    fn pause(self, worked: Duration) -> Duration {
        (worked * (100 - self.0) / self.0).min(MAX_PAUSE)
    }

    /// Pauses after a piece of work that began at this time.
    pub(super) async fn rest(self, begun: Instant) {
        if self != Self::ALL {
            tokio::time::sleep(self.pause(begun.elapsed())).await;
        }
    }
}

impl FromStr for Share {
    type Err = NoShare;

    fn from_str(text: &str) -> Result<Self, NoShare> {
        let percent = text.parse().map_err(|_| NoShare)?;
        (1..=100).contains(&percent).then_some(Self(percent)).ok_or(NoShare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_leaves_the_share_of_the_time_to_work_and_has_an_end() {
        let ms = Duration::from_millis;
        for (share, worked, pause) in [
            (100, ms(30), ms(0)),
            (50, ms(30), ms(30)),
            (20, ms(30), ms(120)),
            (75, ms(30), ms(10)),
            (1, ms(3), ms(297)),
            (1, ms(30_000), MAX_PAUSE),
        ] {
            assert_eq!(Share(share).pause(worked), pause, "{share} % after {worked:?}");
        }
        assert_eq!(Share(20).of(ms(150)), ms(30));
    }

    #[test]
    fn a_rebuild_beside_live_work_takes_half_of_the_cores_and_one_at_least() {
        let limits = Limits::default();
        assert_eq!(limits.threads.get(), (cores().get() / 2).max(1));
        assert!(limits.piece().records < Limits::fast().piece().records);
    }

    #[test]
    fn a_share_is_from_1_to_100_percent() {
        assert_eq!("100".parse::<Share>().unwrap(), Share::ALL);
        for text in ["0", "101", "-5", "20%", ""] {
            assert!(text.parse::<Share>().is_err(), "{text:?}");
        }
    }
}
