//! Database tables, created by the migrations `sql/V*.sql`, which `projector migrate` applies in order.
//!
//! Each view has a table of rows or of parts, which only the projector uses, and an SQL view `view_{name}` with the
//! columns `key`, `version` and `data`, the only interface for readers.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3Default;

use crate::idempotency::IdempotencyKey;

/// Number of hash bits in a repeat key, after 48 bits of milliseconds since 1970.
const HASH_BITS: u32 = 80;
/// Maximum distance between the time of a key and that of its record, in milliseconds. It is below the ten seconds
/// within which the database function `offsets_of` searches: a smaller distance leaves fewer segments that may contain
/// a key.
const NEAR_MS: u64 = 2_000;

/// Names and texts of the migrations, in the order in which they are applied.
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
    ("V25__roles", include_str!("../sql/V25__roles.sql")),
    ("V26__former_logs", include_str!("../sql/V26__former_logs.sql")),
    ("V27__instances", include_str!("../sql/V27__instances.sql")),
];

/// Returns the hash under which the tables index a used idempotency key. A match is not proof; the record has the
/// actual key. The hash begins with the time in the idempotency key, if there is one, so that an index over it grows at
/// its end.
pub fn repeat_key(aggregate: &str, key: &IdempotencyKey) -> Uuid {
    let mut hash = Xxh3Default::new();
    hash.update(aggregate.as_bytes());
    // No aggregate name contains this byte, so no two pairs hash the same input.
    hash.update(&[0]);
    hash.update(key.as_str().as_bytes());
    let hash = hash.digest128();
    let bits = key.time().map_or(hash, |time| u128::from(time.0) << HASH_BITS | hash & ((1 << HASH_BITS) - 1));
    Uuid::from_u128(bits)
}

/// Returns the hash under which the tables index an aggregate's records. The SQL function `name_hash` computes the
/// same.
pub fn name_hash(aggregate: &str) -> i64 {
    let hash = Sha256::digest(aggregate);
    i64::from_be_bytes(std::array::from_fn(|index| hash[index]))
}

/// Returns whether a key is stored beside its record in the journal rather than in the table `repeats`: its time must
/// be close to `at_ms`, the time of the command, so that a lookup can derive from it where the record may be.
pub fn lies_beside_record(key: &IdempotencyKey, at_ms: u64) -> bool {
    key.time().is_some_and(|made| made.0.abs_diff(at_ms) <= NEAR_MS)
}

/// Converts a nonce or a hash to the signed integer with the same 64 bits that Postgres stores.
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
    fn a_key_is_stored_beside_its_record_if_its_time_is_near_that_of_the_command() {
        let made = 1_700_000_000_000;
        let key = IdempotencyKey::from_dedup_key(TimeMs(made), "restock");
        for (at_ms, lies) in [(made, true), (made + 2_000, true), (made - 2_000, true), (made + 2_001, false)] {
            assert_eq!(lies_beside_record(&key, at_ms), lies, "{at_ms}");
        }
        assert!(!lies_beside_record(&IdempotencyKey::from_bare("order-17").unwrap(), made));
    }

    /// The hash is stored in the tables.
    #[test]
    fn the_hash_of_a_name_never_changes() {
        assert_eq!(name_hash("product/cd"), -6_844_563_768_327_716_126);
    }
}
