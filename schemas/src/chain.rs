//! Claims and chains: the single-writer guarantee of a partition, provable from the log alone.
//!
//! A claim at offset C starts an epoch. The epoch's records carry (C, nonce) and are numbered 1, 2, 3… Every reader
//! uses [`Reader`] and so counts the same records. A writer uses [`Writer`] to determine which of its records every
//! reader counts, from the offsets in its delivery reports alone and without reading the log.
//!
//! A claim with the nonce [`Epoch::CLOSED`](crate::record::Epoch::CLOSED) is the last record of its partition that counts.
//! So a log can be closed while owners that know nothing of it still write.
//!
//! Invariant: every record that [`Writer`] reports as acknowledged counts for every [`Reader`], in the order of the
//! sequence numbers, despite concurrent writers and lost, duplicated or delayed records.

mod reader;
mod tally;
mod writer;

pub use reader::{ChainError, Passed, Reader, Verdict};
pub use tally::{Digest, Tally};
pub use writer::{Doubt, Settled, Writer};

#[cfg(test)]
mod tests;
