//! Backoff of an instance from a partition that another one has claimed.

use std::time::Duration;

use tokio::time::Instant;

/// First backoff. Doubled each time, up to the maximum, as long as others keep claiming the partition.
const FIRST_REST: Duration = Duration::from_secs(1);
const MAX_REST: Duration = Duration::from_secs(60);
/// Time since the end of the last backoff after which the next one is [`FIRST_REST`] again.
const CONTENDED_FOR: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Backoff {
    until: Option<Instant>,
    length: Duration,
}

impl Backoff {
    pub(super) fn begin(&mut self) {
        let is_contended = self.until.is_some_and(|until| until.elapsed() < CONTENDED_FOR);
        let length = if is_contended { self.length * 2 } else { FIRST_REST };
        self.length = length.clamp(FIRST_REST, MAX_REST);
        // The jitter keeps two instances that want the same partition from colliding again.
        self.until = Some(Instant::now() + self.length.mul_f64(rand::random_range(0.5..1.5)));
    }

    pub(super) fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    pub(super) fn is_over(&self) -> bool {
        self.left().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_while_others_claim_again_and_is_short_again_afterwards() {
        let mut rest = Backoff::default();
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            rest.begin();
            assert_eq!(rest.length, Duration::from_secs(expected));
        }
        rest.until = Some(Instant::now() - CONTENDED_FOR);
        rest.begin();
        assert_eq!(rest.length, FIRST_REST);
    }
}
