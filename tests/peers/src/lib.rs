//! What the product's speed is compared with, and the clients that `wrk` is no substitute for. Every program is told
//! by its environment what to do; a client prints what it saw as one line of JSON.
//!
//! Absent on purpose: the product's services. These programs meet them over HTTP alone.

pub mod body;
pub mod connection;
pub mod setting;
pub mod topic;
pub mod seen;
