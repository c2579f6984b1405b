//! Claim and chain: how one partition has one writer at a time, proved by the log itself.
//!
//! A claim at offset C starts an epoch. The epoch's records carry (C, nonce) and are numbered 1, 2, 3… Every
//! reader counts the same records by [`Reader`]; a writer knows by [`Writer`] which of its records every reader
//! counts, from the offsets in its delivery reports alone, without reading.
//!
//! Invariant: what [`Writer`] reports as acknowledged counts for every [`Reader`], in the order of its numbers,
//! whatever other writers, lost, doubled or late records do.

mod reader;
mod tally;
mod writer;

pub use reader::{ChainError, Passed, Reader, Verdict};
pub use tally::{Digest, Tally};
pub use writer::{Doubt, Settled, Writer};

#[cfg(test)]
mod tests;
