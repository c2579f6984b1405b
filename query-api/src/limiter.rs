//! Concurrency limit for requests to one server.
//!
//! Invariant: requests above the limit wait in a bounded queue for a bounded time and are then refused, so that a slow
//! server causes refusals, never a backlog.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Semaphore with a bounded queue and a bounded wait.
#[derive(Debug)]
pub(crate) struct Limiter {
    places: Semaphore,
    queue: Semaphore,
    wait: Duration,
}

/// The queue is full, or the wait was too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests are in flight")]
pub(crate) struct Busy;

impl Limiter {
    /// Allows `places` concurrent requests; `queue` more may wait, each for at most `wait`.
    pub(crate) fn new(places: usize, queue: usize, wait: Duration) -> Self {
        Self { places: Semaphore::new(places), queue: Semaphore::new(queue), wait }
    }

    /// Waits for a place, which is held until the permit is dropped.
    pub(crate) async fn enter(&self) -> Result<SemaphorePermit<'_>, Busy> {
        // The semaphore is fair: a released place goes to the first in the queue, so this overtakes no waiting request.
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        let _waits = self.queue.try_acquire().map_err(|_| Busy)?;
        let place = tokio::time::timeout(self.wait, self.places.acquire()).await.map_err(|_| Busy)?;
        place.map_err(|_| Busy)
    }

    /// Takes a place if one is free, without waiting.
    pub(crate) fn try_enter(&self) -> Result<SemaphorePermit<'_>, Busy> {
        self.places.try_acquire().map_err(|_| Busy)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures_util::FutureExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_request_that_finds_the_queue_full_is_refused_at_once() {
        let limiter = Limiter::new(1, 1, LONG);
        let place = limiter.enter().await.unwrap();
        assert!(limiter.try_enter().is_err());
        let mut first = Box::pin(limiter.enter());
        assert!((&mut first).now_or_never().is_none());
        assert!(matches!(limiter.enter().await, Err(Busy)));
        drop(place);
        assert!(first.await.is_ok());
        assert!(limiter.try_enter().is_ok());
    }

    #[tokio::test]
    async fn a_request_that_waited_too_long_is_refused_and_leaves_the_queue() {
        let limiter = Limiter::new(1, 1, Duration::from_millis(1));
        let _place = limiter.enter().await.unwrap();
        for _ in 0..3 {
            let begun = Instant::now();
            assert!(matches!(limiter.enter().await, Err(Busy)));
            assert!(begun.elapsed() >= Duration::from_millis(1));
        }
    }
}
