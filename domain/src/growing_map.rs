//! A hash map that grows without long pauses.
//!
//! A plain hash map moves all its entries whenever it is full: 0.4 s for a sale with a million claims, while every
//! command of the partition waits. Above a certain size, this map consists of many small ones, each of which grows by
//! itself.

use alloc::boxed::Box;
use core::fmt;
use core::hash::{BuildHasher as _, Hash};

use hashbrown::HashMap;
use hashbrown::hash_map;

/// Number of entries at which the map is split into parts.
const SPLIT_AT: usize = 4096;
const PARTS: usize = 256;

/// A hash map of which each operation moves at most about a 256th of the entries, or 4,096 of them. An empty map is a
/// null pointer, because most maps of most products in a large catalogue are empty.
#[derive(Clone)]
pub struct GrowingMap<K, V>(Option<Box<Parts<K, V>>>);

#[derive(Clone)]
enum Parts<K, V> {
    One(HashMap<K, V>),
    Many { parts: Box<[HashMap<K, V>]>, len: usize },
}

impl<K: Eq + Hash, V> GrowingMap<K, V> {
    pub fn len(&self) -> usize {
        match self.0.as_deref() {
            None => 0,
            Some(Parts::One(map)) => map.len(),
            Some(Parts::Many { len, .. }) => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        match self.0.as_deref()? {
            Parts::One(map) => map.get(key),
            Parts::Many { parts, .. } => parts[part_of(parts, key)].get(key),
        }
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        match self.0.as_deref_mut()? {
            Parts::One(map) => map.get_mut(key),
            Parts::Many { parts, .. } => parts[part_of(parts, key)].get_mut(key),
        }
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Inserts a value and returns the previous one.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let parts = self.0.get_or_insert_with(|| Box::new(Parts::One(HashMap::new())));
        parts.split_if_full();
        match &mut **parts {
            Parts::One(map) => map.insert(key, value),
            Parts::Many { parts, len } => {
                let before = parts[part_of(parts, &key)].insert(key, value);
                *len += usize::from(before.is_none());
                before
            }
        }
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (removed, left) = match self.0.as_deref_mut()? {
            Parts::One(map) => (map.remove(key), map.len()),
            Parts::Many { parts, len } => {
                let removed = parts[part_of(parts, key)].remove(key);
                *len -= usize::from(removed.is_some());
                (removed, *len)
            }
        };
        if left == 0 {
            self.0 = None;
        }
        removed
    }

    /// Iterates over the entries in arbitrary order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        match self.0.as_deref() {
            None => &[],
            Some(Parts::One(map)) => core::slice::from_ref(map),
            Some(Parts::Many { parts, .. }) => parts,
        }
        .iter()
        .flat_map(hash_map::HashMap::iter)
    }

    /// Iterates over the values in arbitrary order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Eq + Hash, V> Parts<K, V> {
    fn split_if_full(&mut self) {
        let Self::One(map) = self else { return };
        if map.len() < SPLIT_AT {
            return;
        }
        let len = map.len();
        let whole = core::mem::take(map);
        let mut parts: Box<[HashMap<K, V>]> = (0..PARTS).map(|_| HashMap::new()).collect();
        for (key, value) in whole {
            parts[part_of(&parts, &key)].insert(key, value);
        }
        *self = Self::Many { parts, len };
    }
}

/// Chooses the part of a key by bits of its hash that the parts themselves, of fewer than 2^32 slots, do not use.
fn part_of<K: Hash, V>(parts: &[HashMap<K, V>], key: &K) -> usize {
    (parts[0].hasher().hash_one(key) >> 32) as usize % PARTS
}

impl<K, V> Default for GrowingMap<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Eq + Hash, V> FromIterator<(K, V)> for GrowingMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<K: Eq + Hash, V, const N: usize> From<[(K, V); N]> for GrowingMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Eq + Hash, V: PartialEq> PartialEq for GrowingMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

impl<K: Eq + Hash, V: Eq> Eq for GrowingMap<K, V> {}

impl<K: Eq + Hash + fmt::Debug, V: fmt::Debug> fmt::Debug for GrowingMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;
    use alloc::format;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_map_is_split_once_it_is_full_and_its_parts_share_the_entries() {
        let mut map: GrowingMap<_, _> = (0..SPLIT_AT).map(|key| (key, ())).collect();
        assert!(matches!(map.0.as_deref(), Some(Parts::One(_))));
        map.insert(SPLIT_AT, ());
        let Some(Parts::Many { parts, len }) = map.0.as_deref() else { panic!("one part of {} entries", map.len()) };
        assert_eq!(*len, SPLIT_AT + 1);
        let largest = parts.iter().map(HashMap::len).max().unwrap();
        assert!(largest < 6 * SPLIT_AT / PARTS, "{largest} entries in one part");
    }

    #[test]
    fn two_maps_are_equal_if_they_have_the_same_entries() {
        let map = GrowingMap::from([(1, 2)]);
        assert_eq!(map, GrowingMap::from([(1, 2)]));
        for other in [GrowingMap::default(), [(1, 3)].into(), [(2, 2)].into(), [(1, 2), (2, 2)].into()] {
            assert_ne!(map, other);
            assert_ne!(other, map);
        }
        assert_eq!(format!("{map:?}"), "{1: 2}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn it_is_a_map_whatever_its_size(steps in proptest::collection::vec((0..9_000_u32, 0..4_u8), 30_000)) {
            let (mut map, mut model) = (GrowingMap::default(), BTreeMap::new());
            for (key, what) in steps {
                match what {
                    0 => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    _ => prop_assert_eq!(map.insert(key, what), model.insert(key, what)),
                }
                prop_assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
            }
            let is_split = matches!(map.0.as_deref(), Some(Parts::Many { .. }));
            prop_assert!(is_split);
            prop_assert_eq!(map.iter().map(|(key, value)| (*key, *value)).collect::<BTreeMap<_, _>>(), model.clone());
            prop_assert!((0..9_000).all(|key| map.get(&key) == model.get(&key)));
            prop_assert_eq!(&map, &model.into_iter().collect());
            map.insert(9_000, 1);
            prop_assert_ne!(map.clone(), map.iter().filter(|entry| *entry.0 < 9_000).map(|(k, v)| (*k, *v)).collect());
        }
    }
}
