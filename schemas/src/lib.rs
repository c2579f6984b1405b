#![doc = include_str!("../README.md")]
//!
//! # Invariants
//!
//! Invariant: wire types are versioned and separate from the domain types they carry. Names on the wire are spelled out
//! here and never derived from Rust names. A record once written stays readable forever.
//!
//! Invariant: [`chain`] is the only implementation of the reader's and the writer's rule. Every component that reads or
//! writes the log uses it, so no two readers can disagree about which records count.
//!
//! Absent on purpose: I/O.

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
pub mod headers;
pub mod commands;
pub mod answers;
pub mod problem;
pub mod snapshots;
pub mod tables;
pub mod settings;
pub mod status;
pub mod views;
pub mod feeds;
pub mod cache;
pub mod contracts;
