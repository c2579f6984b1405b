//! Reports peers that cannot be reached, once each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::millis;

/// Maximum number of unreachable peers that are remembered. Peers that left long ago come back under other names.
const MAX_OUTAGES: usize = 256;

/// Peers that were unreachable at the last attempt, and since when. Every command to such a peer tries again; logging
/// each failure would drown out everything else.
#[derive(Debug, Clone, Default)]
pub(super) struct Outages(Arc<Mutex<HashMap<Arc<str>, Instant>>>);

impl Outages {
    /// Logs a failed attempt to connect: the first as a warning.
    pub(super) fn note(&self, url: &Arc<str>, error: &str) {
        let peer = without_user(url);
        if self.begins(url) {
            tracing::warn!(
                peer.url = peer,
                error,
                "peer unreachable; commands for its partitions are refused until it is back or another instance takes over"
            );
        } else {
            tracing::debug!(peer.url = peer, error, "peer unreachable");
        }
    }

    /// Logs that a peer's address is not allowed, once.
    pub(super) fn refuse(&self, url: &Arc<str>) {
        if self.begins(url) {
            tracing::error!(
                peer.url = without_user(url),
                "a claim in the log names an address that PEER_URLS does not allow; nothing is sent to it: add it if it \
                 belongs to an instance, otherwise find out who else writes the log"
            );
        }
    }

    /// Marks the peer as unreachable. Returns whether it was reachable before.
    fn begins(&self, url: &Arc<str>) -> bool {
        let mut since = self.since();
        if since.contains_key(url) {
            return false;
        }
        if since.len() >= MAX_OUTAGES
            && let Some(oldest) = since.iter().min_by_key(|(_, since)| **since).map(|(url, _)| url.clone())
        {
            since.remove(&oldest);
        }
        since.insert(url.clone(), Instant::now());
        true
    }

    /// Logs that the peer is reachable again, if it was not.
    pub(super) fn end(&self, url: &Arc<str>) {
        if let Some(since) = self.since().remove(url) {
            let duration_ms = millis(since.elapsed());
            tracing::info!(peer.url = without_user(url), duration_ms, "peer reachable again");
        }
    }

    fn since(&self) -> MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Strips the part of a URL up to an `@`, which may contain a password.
pub(super) fn without_user(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_peer_is_logged_once_until_it_comes_back() {
        let (outages, url): (_, Arc<str>) = (Outages::default(), "http://127.0.0.1:1".into());
        assert!(outages.begins(&url) && !outages.begins(&url));
        outages.end(&url);
        assert!(outages.begins(&url));
        for other in 0..1_000 {
            assert!(outages.begins(&Arc::from(format!("http://127.0.0.1:{other}/"))));
        }
        assert_eq!(outages.since().len(), MAX_OUTAGES);
    }

    #[test]
    fn a_password_in_a_peers_url_is_not_logged() {
        assert_eq!(without_user("http://me:hunter2@commands-1:8181"), "commands-1:8181");
        assert_eq!(without_user("http://commands-1:8181"), "http://commands-1:8181");
    }
}
