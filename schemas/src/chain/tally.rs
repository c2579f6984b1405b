//! Running count and order-sensitive hash of the records that counted. Two readers of the same records get equal
//! tallies.

use xxhash_rust::xxh3::xxh3_64;

/// Tally of the records of a partition that counted, claims included, from some offset on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub counted: u64,
    /// Hash over every offset and every byte. It is stored in tables, so the algorithm can never change.
    pub hash: u64,
}

/// Digest of a record's bytes, computed once and then added to any number of tallies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    pub fn of(value: &[u8]) -> Self {
        Self(xxh3_64(value))
    }
}

impl Tally {
    /// Adds a record that counted.
    pub fn take(&mut self, offset: i64, Digest(digest): Digest) {
        let mut bytes = [0; 24];
        let parts = [self.hash, offset.cast_unsigned(), digest];
        for (place, part) in bytes.chunks_exact_mut(8).zip(parts) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        self.counted += 1;
        self.hash = xxh3_64(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(records: &[(i64, &str)]) -> Tally {
        let mut tally = Tally::default();
        for (offset, value) in records {
            tally.take(*offset, Digest::of(value.as_bytes()));
        }
        tally
    }

    #[test]
    fn a_record_that_is_left_out_doubled_moved_or_changed_shows() {
        let right = tally(&[(0, "a"), (1, "b"), (2, "c")]);
        for other in [
            &[(0, "a"), (2, "c")][..],
            &[(0, "a"), (1, "b"), (1, "b"), (2, "c")],
            &[(0, "a"), (1, "c"), (2, "b")],
            &[(0, "a"), (1, "b"), (3, "c")],
            &[(0, "a"), (1, "b"), (2, "d")],
        ] {
            assert_ne!(tally(other).hash, right.hash, "{other:?}");
        }
    }

    #[test]
    fn a_tally_is_the_same_for_ever() {
        assert_eq!(tally(&[(0, "a"), (1, "b")]), Tally { counted: 2, hash: 7_895_763_393_261_200_773 });
    }
}
