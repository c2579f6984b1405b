//! The read side's tables: `sql/V*.sql`, applied in their order by `projector migrate`.
//!
//! Each view has a table of rows or of parts, which only its projector knows, and an SQL view `view_{name}` with
//! the columns `key`, `version` and `data`, which is all that readers use.

/// Where the migrations lie, for tools that read them from disk.
pub const MIGRATIONS: &[(&str, &str)] = &[("V1__read_side", include_str!("../sql/V1__read_side.sql"))];

/// A nonce as Postgres stores it: the same 64 bits, signed.
pub fn nonce_to_sql(nonce: u64) -> i64 {
    nonce.cast_signed()
}

pub fn nonce_from_sql(stored: i64) -> u64 {
    stored.cast_unsigned()
}
