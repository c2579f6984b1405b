//! The time for which an instance leaves a partition alone that another one claimed.

use std::time::Duration;

use tokio::time::Instant;

/// Doubled each time, to the maximum.
const FIRST_REST: Duration = Duration::from_secs(1);
const MAX_REST: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Rest {
    until: Option<Instant>,
    length: Duration,
}

impl Rest {
    pub(super) fn begin(&mut self) {
        self.length = (self.length * 2).clamp(FIRST_REST, MAX_REST);
        // Two instances that want the same partition must not meet again.
        self.until = Some(Instant::now() + self.length.mul_f64(rand::random_range(0.5..1.5)));
    }

    pub(super) fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    pub(super) fn is_over(&self) -> bool {
        self.left().is_none()
    }
}
