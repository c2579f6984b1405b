//! The tables: `sql/V*.sql`, applied in their order by `projector migrate`.
//!
//! Each view has a table of rows or of parts, which only its projector knows, and an SQL view `view_{name}` with
//! the columns `key`, `version` and `data`, which is all that readers use.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3Default;

use crate::idempotency::IdempotencyKey;

/// Of the key of a repeat, behind 48 bits of milliseconds since 1970.
const HASH_BITS: u32 = 80;
/// Less than the ten seconds within which the database's `offsets_of` looks: the closer they are, the fewer segments may have a
/// key of some time.
const NEAR_MS: u64 = 2_000;

/// Where the migrations lie, for tools that read them from disk.
pub const MIGRATIONS: &[(&str, &str)] = &[
    ("V1__read_side", include_str!("../sql/V1__read_side.sql")),
    ("V2__write_side", include_str!("../sql/V2__write_side.sql")),
    ("V3__lists", include_str!("../sql/V3__lists.sql")),
    ("V4__tallies", include_str!("../sql/V4__tallies.sql")),
    ("V6__generations", include_str!("../sql/V6__generations.sql")),
    ("V7__parked", include_str!("../sql/V7__parked.sql")),
    ("V8__shop", include_str!("../sql/V8__shop.sql")),
    ("V9__deadlines_that_failed", include_str!("../sql/V9__deadlines_that_failed.sql")),
    ("V13__states_by_form", include_str!("../sql/V13__states_by_form.sql")),
    ("V15__exact_sums", include_str!("../sql/V15__exact_sums.sql")),
    ("V20__settings", include_str!("../sql/V20__settings.sql")),
    ("V21__segments", include_str!("../sql/V21__segments.sql")),
    ("V22__written_columns", include_str!("../sql/V22__written_columns.sql")),
    ("V23__keys_beside_records", include_str!("../sql/V23__keys_beside_records.sql")),
    ("V24__retries", include_str!("../sql/V24__retries.sql")),
];

/// Returns the hash by which the tables find a key that took effect: an index entry, not a proof. The record tells whose it
/// is. It begins with the time that the idempotency key tells, if it does: an index of them grows at its end then.
pub fn repeat_key(aggregate: &str, key: &IdempotencyKey) -> Uuid {
    let mut hash = Xxh3Default::new();
    hash.update(aggregate.as_bytes());
    // No name of an aggregate has this byte, so no two pairs run together.
    hash.update(&[0]);
    hash.update(key.as_str().as_bytes());
    let hash = hash.digest128();
    let bits = key.time().map_or(hash, |time| u128::from(time.0) << HASH_BITS | hash & ((1 << HASH_BITS) - 1));
    Uuid::from_u128(bits)
}

/// Returns the hash by which the tables find an aggregate's records. `name_hash` of the database is the same.
pub fn name_hash(aggregate: &str) -> i64 {
    let hash = Sha256::digest(aggregate);
    i64::from_be_bytes(std::array::from_fn(|index| hash[index]))
}

/// Tells whether a key lies beside its record in the journal, and not in the table `repeats`: those who look it up know by the
/// time that it tells where its record may be. `at_ms`: of the command.
pub fn lies_beside_record(key: &IdempotencyKey, at_ms: u64) -> bool {
    key.time().is_some_and(|made| made.0.abs_diff(at_ms) <= NEAR_MS)
}

/// A nonce or a hash as Postgres stores it: the same 64 bits, signed.
pub fn nonce_to_sql(nonce: u64) -> i64 {
    nonce.cast_signed()
}

pub fn nonce_from_sql(stored: i64) -> u64 {
    stored.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use domain::TimeMs;

    use super::*;

    #[test]
    fn a_key_lies_beside_its_record_if_it_tells_a_time_near_its_commands() {
        let made = 1_700_000_000_000;
        let key = IdempotencyKey::from_dedup_key(TimeMs(made), "restock");
        for (at_ms, lies) in [(made, true), (made + 2_000, true), (made - 2_000, true), (made + 2_001, false)] {
            assert_eq!(lies_beside_record(&key, at_ms), lies, "{at_ms}");
        }
        assert!(!lies_beside_record(&IdempotencyKey::from_bare("order-17").unwrap(), made));
    }

    /// It stands in the tables.
    #[test]
    fn the_hash_of_a_name_never_changes() {
        assert_eq!(name_hash("product/cd"), -6_844_563_768_327_716_126);
    }
}
