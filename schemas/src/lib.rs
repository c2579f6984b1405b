//! Everything that crosses a process border: records in the log and how to read them, event versions, tokens,
//! request and answer bodies, tables, cached bytes.
//!
//! Invariant: a wire type is versioned and apart from the domain type that it carries; names on the wire are
//! written out here and never derived from names in Rust. A record once written stays readable for ever.
//!
//! Invariant: [`chain`] is the only implementation of the reader's and the writer's rule. Whatever reads or
//! writes the log goes through it, so that no two readers can disagree about what counts.
//!
//! Absent on purpose: I/O of any kind.

pub mod topic;
pub mod aggregate;
pub mod record;
pub mod exceptions;
pub mod journal;
pub mod events;
pub mod chain;
pub mod token;
pub mod idempotency;
pub mod time;
pub mod trace;
pub mod commands;
pub mod answers;
pub mod problem;
pub mod snapshots;
pub mod tables;
pub mod settings;
pub mod views;
pub mod feeds;
pub mod cache;
pub mod contracts;
