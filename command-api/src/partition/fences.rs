//! When the next fence is due.
//!
//! A fence costs the broker a request, and every reader of the partition a wake-up: more than all that it proves. So one
//! is in flight at a time; and where the last one was shared, the next one waits until others can share it, too.

use std::time::Duration;

use domain::TimeMs;

/// From one shared fence to the next. An answer may wait for 5 ms to share one; the clock counts whole milliseconds.
const PACE_MS: u64 = 4;
/// Answers to one fence that are a crowd. Less than that wait for nobody.
const CROWD: usize = 4;

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Fences {
    /// The last one's; 0: none was sent in this epoch.
    pub(super) seq: u64,
    sent_at: TimeMs,
    /// Answers that it was to prove.
    shared_by: usize,
}

impl Fences {
    pub(super) fn sent(&mut self, seq: u64, shared_by: usize, now: TimeMs) {
        *self = Self { seq, sent_at: now, shared_by };
    }

    pub(super) fn is_due(&self, acknowledged: u64, now: TimeMs) -> bool {
        self.seq <= acknowledged && self.due_in(now).is_none()
    }

    /// `None`: the next one waits for no company. Nor does it where the clock went back.
    pub(super) fn due_in(&self, now: TimeMs) -> Option<Duration> {
        let waited = now.0.checked_sub(self.sent_at.0)?;
        let left = PACE_MS.checked_sub(waited).filter(|left| *left > 0 && self.shared_by >= CROWD)?;
        Some(Duration::from_millis(left))
    }
}
