//! The tables: `sql/V*.sql`, applied in their order by `projector migrate`.
//!
//! Each view has a table of rows or of parts, which only its projector knows, and an SQL view `view_{name}` with
//! the columns `key`, `version` and `data`, which is all that readers use.

use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3Default;

use crate::idempotency::IdempotencyKey;

/// Of the key of a repeat, behind 48 bits of milliseconds since 1970.
const HASH_BITS: u32 = 80;

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
];

/// The key of the table `repeats`: an index entry, not a proof. The journal tells whose it is. It begins with the time that
/// the idempotency key tells, if it does: the index grows at its end then.
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

/// A nonce or a hash as Postgres stores it: the same 64 bits, signed.
pub fn nonce_to_sql(nonce: u64) -> i64 {
    nonce.cast_signed()
}

pub fn nonce_from_sql(stored: i64) -> u64 {
    stored.cast_unsigned()
}
