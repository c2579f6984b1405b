//! Who waits for which position. News wake only those whose position they bring: ten thousand that wait cost nothing
//! while others' news pass by.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::feeds::FeedId;
use tokio::sync::Notify;

/// Requests that may wait at a time.
const MAX_WAITERS: usize = 10_000;

/// Of those, from one address, that wait for what may never have been written.
const MAX_UNPROVEN: usize = 100;

/// Where a position is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    Cache,
    Store,
}

/// A position of a place: place, feed, partition, offset.
pub(super) type Position = (At, FeedId, u32, i64);

#[derive(Debug, Default)]
pub(super) struct Waiters {
    count: AtomicUsize,
    next_id: AtomicUsize,
    /// By position, and an id that makes each entry one waiter's own.
    waiting: Mutex<BTreeMap<(Position, usize), Arc<Notify>>>,
    unproven: Mutex<HashMap<IpAddr, usize>>,
}

/// One of those that an address may have, until it is dropped.
pub(super) struct Unproven<'a> {
    waiters: &'a Waiters,
    /// `None`: one that is not counted.
    from: Option<IpAddr>,
}

/// Counted while it lives.
pub(super) struct Waiter<'a> {
    waiters: &'a Waiters,
    id: usize,
    woken: Arc<Notify>,
}

/// One waiter's entries, gone when it is dropped.
pub(super) struct Entry<'a> {
    waiter: &'a Waiter<'a>,
    positions: Vec<Position>,
}

impl Waiters {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// `None`: too many wait already.
    pub(super) fn enter(&self) -> Option<Waiter<'_>> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let waiter = Waiter { waiters: self, id, woken: Arc::default() };
        (before < MAX_WAITERS).then_some(waiter)
    }

    /// Counts one more that waits for what may never have been written. This machine and whoever is not told of are not
    /// counted. `None`: too many do from there.
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

    /// The place shows the partition up to and with this offset now.
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
    /// To be woken by any of them. Nothing may move between the look that found these missing and this call.
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

/// Returns what one client has: of IPv6 a network of 64 bits.
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
    fn news_wake_those_whose_position_they_bring_and_nobody_else() {
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
    fn there_are_never_more_than_the_limit() {
        let waiters = Waiters::default();
        let all: Vec<_> = (0..MAX_WAITERS).map(|_| waiters.enter().unwrap()).collect();
        assert!(waiters.enter().is_none());
        assert_eq!(waiters.count(), MAX_WAITERS);
        drop(all);
        assert_eq!(waiters.count(), 0);
    }

    #[test]
    fn an_address_has_so_many_unproven_ones_and_this_machine_any_number() {
        let waiters = Waiters::default();
        let of = |text: &str| waiters.enter_from(Some(text.parse().unwrap()));
        let mut own: Vec<_> = (0..MAX_UNPROVEN).map(|_| of("2001:db8::1").unwrap()).collect();
        assert!(of("2001:db8::2").is_none(), "of the same network");
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
