//! Sample of the keys that are folded again: all, or a number of them, chosen uniformly in one pass over the log.
//!
//! A key's rank is a hash, and the keys of the lowest ranks are kept. The highest rank that is kept only falls, so a
//! key that is kept at the end was kept from its first event on, and misses none.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};

pub(super) struct Sample<T> {
    /// Maximum number of keys; `None`: no limit.
    most: Option<usize>,
    ranks: RandomState,
    kept: BTreeMap<(u64, String), T>,
    is_closed: bool,
}

impl<T: Default> Sample<T> {
    pub(super) fn new(most: Option<usize>) -> Self {
        Self { most, ranks: RandomState::new(), kept: BTreeMap::new(), is_closed: false }
    }

    /// Returns the value of a key; `None`: it is not in the sample.
    pub(super) fn entry(&mut self, key: &str) -> Option<&mut T> {
        let place = (self.ranks.hash_one(key), key.to_owned());
        if let Some(most) = self.most
            && !self.kept.contains_key(&place)
        {
            let is_full = self.kept.len() >= most;
            if self.is_closed || (is_full && self.kept.last_key_value().is_none_or(|(last, _)| *last < place)) {
                return None;
            }
            if is_full {
                self.kept.pop_last();
            }
        }
        Some(self.kept.entry(place).or_default())
    }

    /// Closes the sample: from now on it takes no new key.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.kept.iter().map(|((_, key), value)| (key.as_str(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_the_sample_misses_no_event() {
        let mut sample: Sample<u32> = Sample::new(Some(10));
        for _ in 0..3 {
            for key in 0..1000 {
                if let Some(count) = sample.entry(&key.to_string()) {
                    *count += 1;
                }
            }
        }
        assert!(sample.iter().map(|(_, count)| *count).eq([3; 10]));
    }

    #[test]
    fn a_closed_sample_takes_no_new_key() {
        let mut sample: Sample<u32> = Sample::new(Some(10));
        assert!(sample.entry("a").is_some());
        sample.close();
        assert!(sample.entry("a").is_some() && sample.entry("b").is_none());
    }

    #[test]
    fn all_keys_are_kept_where_all_are_wanted() {
        let mut sample: Sample<u32> = Sample::new(None);
        assert!((0..1000).all(|key| sample.entry(&key.to_string()).is_some()));
        assert_eq!(sample.iter().count(), 1000);
    }
}
