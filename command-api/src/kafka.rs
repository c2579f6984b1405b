//! The log: one client that appends, one that reads, one that describes the topic.

pub(crate) mod producer;
pub(crate) mod reader;
pub mod topic;
