//! The names of a partition's aggregates, as a Bloom filter: an aggregate that is not in it has no events, so nothing
//! of it is in the store. A false positive costs a needless lookup.
//!
//! Invariant: it contains every aggregate with an event before the offset `until`, and no name is ever removed. The log
//! is append-only, so this holds whatever happens to memory, to Postgres and to the ownership of the partition.

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher13};

/// Bits per name, for a false positive rate of 1 in 300 per link.
const BITS_A_NAME: usize = 12;
const BITS_SET: u64 = 8;
const FIRST_WORDS: usize = 32;
/// Maximum size of a link: 16 MiB, with room for 15 million names. Beyond that, all names are discarded, and no
/// aggregate is known to be new any more.
const MAX_WORDS: usize = 1 << 21;

#[derive(Debug, Default, Clone)]
pub(super) struct Names {
    /// Bloom filters, each four times as large as the one before; names go into the last one.
    links: Vec<Arc<[u64]>>,
    count: usize,
    /// Number of names for which the last link has room.
    room: usize,
    until: i64,
    is_overfull: bool,
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Returns whether every aggregate with an event before this offset is included.
    pub(super) fn reach(&self, offset: i64) -> bool {
        self.until >= offset && !self.is_overfull
    }

    /// Returns the offset from which names are needed for it to reach `offset`.
    pub(super) fn lack_from(&self, offset: i64) -> Option<i64> {
        (self.until < offset && !self.is_overfull).then_some(self.until)
    }

    /// Records that every aggregate with an event between the previous end and `offset` was inserted.
    pub(super) fn extend_to(&mut self, offset: i64) {
        self.until = self.until.max(offset);
    }

    pub(super) fn contain(&self, name: &str) -> bool {
        self.has(hash(name))
    }

    pub(super) fn insert(&mut self, name: &str) {
        let hash = hash(name);
        if self.is_overfull || self.has(hash) {
            return;
        }
        if self.room == 0 {
            let words = self.links.last().map_or(FIRST_WORDS, |link| link.len() * 4);
            if words > MAX_WORDS {
                *self = Self { is_overfull: true, ..Self::default() };
                return;
            }
            self.links.push(vec![0; words].into());
            self.room = words * 64 / BITS_A_NAME;
        }
        let link = Arc::make_mut(self.links.last_mut().expect("there is room in it"));
        for (word, bit) in places(hash, link.len()) {
            link[word] |= bit;
        }
        self.count += 1;
        self.room -= 1;
    }

    fn has(&self, hash: u128) -> bool {
        self.links.iter().rev().any(|link| places(hash, link.len()).all(|(word, bit)| link[word] & bit != 0))
    }
}

/// Hashes a name. The partitioner's hash would not do: its remainder is the same for all names of a partition.
fn hash(name: &str) -> u128 {
    let mut hasher = SipHasher13::new();
    hasher.write(name.as_bytes());
    hasher.finish128().as_u128()
}

/// Returns the word and the bit of each probe, by double hashing; `words` is a power of two.
fn places(hash: u128, words: usize) -> impl Iterator<Item = (usize, u64)> {
    let (first, step) = ((hash >> 64) as u64, hash as u64 | 1);
    (0..BITS_SET).map(move |n| {
        let bit = first.wrapping_add(n.wrapping_mul(step));
        ((bit >> 6) as usize & (words - 1), 1 << (bit & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stays_in_it_and_few_others_seem_to_be() {
        let mut names = Names::default();
        let name = |n: usize| format!("order/{n}");
        for n in 0..100_000 {
            names.insert(&name(n));
        }
        assert!((0..100_000).all(|n| names.contain(&name(n))));
        let taken_for_known = (100_000..200_000).filter(|n| names.contain(&name(*n))).count();
        assert!(taken_for_known < 2_000, "{taken_for_known} of 100,000");
    }

    #[test]
    fn with_more_names_than_it_has_room_for_it_reaches_nowhere_and_asks_for_none() {
        let mut names = Names::default();
        names.insert("order/1");
        names.extend_to(7);
        assert_eq!(
            (names.reach(7), names.reach(8), names.lack_from(7), names.lack_from(8)),
            (true, false, None, Some(7))
        );
        (names.links, names.room) = (vec![vec![0; MAX_WORDS].into()], 0);
        names.insert("order/2");
        assert_eq!((names.reach(0), names.lack_from(8), names.links.len()), (false, None, 0));
    }
}
