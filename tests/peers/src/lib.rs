//! Programs that the product's speed is compared with, and clients for loads that `wrk` cannot produce. Every program
//! is configured by its environment; a client prints its measurements as one line of JSON.
//!
//! This crate does not depend on the product's services; these programs reach them over HTTP only.

pub mod body;
pub mod connection;
pub mod setting;
pub mod topic;
pub mod seen;
