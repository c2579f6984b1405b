//! Registry of the requests that wait for a position. An advance wakes only the requests that wait for it, so ten
//! thousand waiting requests cost nothing while other positions advance.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::feeds::FeedId;
use tokio::sync::Notify;

/// Maximum number of waiting requests.
pub(crate) const MAX_WAITERS: usize = 10_000;

/// Maximum number of requests from one address that wait for a position that may not exist.
const MAX_UNPROVEN: usize = 100;

/// The place whose position a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    Cache,
    Store,
}

/// A position in a place: place, feed, partition, offset.
pub(super) type Position = (At, FeedId, u32, i64);

/// Waiting requests, by the position that they wait for.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    count: AtomicUsize,
    next_id: AtomicUsize,
    /// Entries by position and waiter id.
    waiting: Mutex<BTreeMap<(Position, usize), Arc<Notify>>>,
    unproven: Mutex<HashMap<IpAddr, usize>>,
}

/// A permit to wait for a position that may not exist, counted against its address until dropped.
pub(super) struct Unproven<'a> {
    waiters: &'a Waiters,
    /// The address, or `None` if the permit is not counted.
    from: Option<IpAddr>,
}

/// A waiting request, counted until dropped.
pub(super) struct Waiter<'a> {
    waiters: &'a Waiters,
    id: usize,
    woken: Arc<Notify>,
}

/// The entries of one waiter, removed when dropped.
pub(super) struct Entry<'a> {
    waiter: &'a Waiter<'a>,
    positions: Vec<Position>,
}

impl Waiters {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Registers a waiter; returns `None` if [`MAX_WAITERS`] are waiting already.
    pub(super) fn enter(&self) -> Option<Waiter<'_>> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let waiter = Waiter { waiters: self, id, woken: Arc::default() };
        (before < MAX_WAITERS).then_some(waiter)
    }

    /// Permits a wait for a position that may not exist; returns `None` if the address has [`MAX_UNPROVEN`] already.
    /// Loopback and unknown addresses are not counted.
    pub(super) fn enter_from(&self, from: Option<IpAddr>) -> Option<Unproven<'_>> {
        let from = from.map(network).filter(|from| !from.is_loopback());
        if let Some(from) = from {
            let mut unproven = self.unproven.lock().unwrap_or_else(PoisonError::into_inner);
            let count = unproven.entry(from).or_default();
            if *count >= MAX_UNPROVEN {
                return None;
            }
            *count += 1;
        }
        Some(Unproven { waiters: self, from })
    }

    /// Wakes the waiters whose positions are reached now that the place shows the partition up to and including this
    /// offset.
    pub(super) fn wake(&self, (at, feed, partition, offset): Position) {
        let mut waiting = self.lock();
        let (first, last) = (((at, feed, partition, i64::MIN), 0), ((at, feed, partition, offset), usize::MAX));
        while let Some(key) = waiting.range(first..=last).next().map(|(key, _)| *key) {
            if let Some(woken) = waiting.remove(&key) {
                woken.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Position, usize), Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter<'_> {
    /// Registers the waiter, to be woken by any of the positions. The caller must hold the lock under which it found
    /// them missing, so that none can be reached in between.
    pub(super) fn wait_for(&self, positions: Vec<Position>) -> Entry<'_> {
        let mut waiting = self.waiters.lock();
        for position in &positions {
            waiting.insert((*position, self.id), self.woken.clone());
        }
        Entry { waiter: self, positions }
    }
}

impl Entry<'_> {
    pub(super) async fn woken(&self) {
        self.waiter.woken.notified().await;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiter.waiters.lock();
        for position in &self.positions {
            waiting.remove(&(*position, self.waiter.id));
        }
    }
}

impl Drop for Unproven<'_> {
    fn drop(&mut self) {
        let Some(from) = self.from else { return };
        let mut unproven = self.waiters.unproven.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = unproven.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                unproven.remove(&from);
            }
        }
    }
}

/// Returns the network that identifies a client: an IPv4 address, or the /64 network of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => Ipv6Addr::from_bits(address.to_bits() & (!0 << 64)).into(),
        address => address,
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiters.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn an_advance_wakes_only_the_waiters_whose_position_it_reaches() {
        let waiters = Waiters::default();
        let (first, second) = (waiters.enter().unwrap(), waiters.enter().unwrap());
        let [feed, other, ..] = FeedId::all();
        let early = first.wait_for(vec![(At::Cache, feed, 1, 5), (At::Store, feed, 1, 5)]);
        let late = second.wait_for(vec![(At::Cache, feed, 1, 6), (At::Store, feed, 1, 6)]);
        for others in [(At::Cache, feed, 1, 4), (At::Cache, feed, 0, 9), (At::Cache, other, 1, 9)] {
            waiters.wake(others);
        }
        assert!(early.woken().now_or_never().is_none());
        waiters.wake((At::Store, feed, 1, 5));
        assert!(early.woken().now_or_never().is_some());
        assert!(late.woken().now_or_never().is_none());
        waiters.wake((At::Cache, feed, 1, 7));
        assert!(late.woken().now_or_never().is_some());
        drop((early, late));
        assert!(waiters.lock().is_empty());
    }

    #[test]
    fn an_advance_before_the_wait_begins_is_not_lost() {
        let waiters = Waiters::default();
        let waiter = waiters.enter().unwrap();
        let feed = FeedId::all()[0];
        let entry = waiter.wait_for(vec![(At::Store, feed, 0, 5)]);
        waiters.wake((At::Store, feed, 0, 5));
        assert!(entry.woken().now_or_never().is_some());
    }

    #[test]
    fn a_request_that_gives_up_leaves_nothing_behind_and_takes_no_other_with_it() {
        let waiters = Waiters::default();
        let (first, second) = (waiters.enter().unwrap(), waiters.enter().unwrap());
        let position = (At::Cache, FeedId::all()[0], 0, 5);
        let (gives_up, stays) = (first.wait_for(vec![position]), second.wait_for(vec![position]));
        drop(gives_up);
        drop(first);
        assert_eq!((waiters.count(), waiters.lock().len()), (1, 1));
        waiters.wake(position);
        assert!(stays.woken().now_or_never().is_some());
    }

    #[test]
    fn there_are_never_more_than_the_limit() {
        let waiters = Waiters::default();
        let all: Vec<_> = (0..MAX_WAITERS).map(|_| waiters.enter().unwrap()).collect();
        assert!(waiters.enter().is_none());
        assert_eq!(waiters.count(), MAX_WAITERS);
        drop(all);
        assert_eq!(waiters.count(), 0);
    }

    #[test]
    fn unproven_waits_are_limited_by_address_except_for_loopback() {
        let waiters = Waiters::default();
        let of = |text: &str| waiters.enter_from(Some(text.parse().unwrap()));
        let mut own: Vec<_> = (0..MAX_UNPROVEN).map(|_| of("2001:db8::1").unwrap()).collect();
        assert!(of("2001:db8::2").is_none(), "an address of the same network");
        let others: Vec<_> = ["2001:db8:0:1::1", "192.0.2.1"].map(of).into_iter().map(Option::unwrap).collect();
        own.pop();
        own.extend(of("2001:db8::3"));
        assert_eq!(own.len(), MAX_UNPROVEN);
        for none in [Some("::1"), Some("127.0.0.1"), Some("::ffff:127.0.0.1"), None] {
            let from = none.map(|text| text.parse().unwrap());
            let all: Vec<_> = (0..=MAX_UNPROVEN).map(|_| waiters.enter_from(from).unwrap()).collect();
            drop(all);
        }
        drop((own, others));
        assert!(waiters.unproven.lock().unwrap().is_empty());
    }
}
