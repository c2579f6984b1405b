//! Pacing of fences.
//!
//! A fence costs the broker a request and every reader of the partition a wake-up, which is more than the answers it
//! proves cost. So only one is in flight at a time; and if the last one was shared, the next one waits until other
//! answers can share it too.

use std::time::Duration;

use domain::TimeMs;

/// Interval between shared fences, in milliseconds. An answer may wait 5 ms to share one; the clock counts whole
/// milliseconds.
const PACE_MS: u64 = 4;
/// Number of answers from which on a fence counts as shared. Below it, the next fence is not delayed.
const CROWD: usize = 4;

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Fences {
    /// Sequence number of the last fence; 0 if none was sent in this epoch.
    pub(super) seq: u64,
    sent_at: TimeMs,
    /// Number of answers that the last fence was sent to prove.
    shared_by: usize,
}

impl Fences {
    pub(super) fn sent(&mut self, seq: u64, shared_by: usize, now: TimeMs) {
        *self = Self { seq, sent_at: now, shared_by };
    }

    pub(super) fn is_due(&self, acknowledged: u64, now: TimeMs) -> bool {
        self.seq <= acknowledged && self.due_in(now).is_none()
    }

    /// Returns the remaining delay of the next fence, or `None` if there is none, as when the clock went backwards.
    pub(super) fn due_in(&self, now: TimeMs) -> Option<Duration> {
        let waited = now.0.checked_sub(self.sent_at.0)?;
        let left = PACE_MS.checked_sub(waited).filter(|left| *left > 0 && self.shared_by >= CROWD)?;
        Some(Duration::from_millis(left))
    }
}
