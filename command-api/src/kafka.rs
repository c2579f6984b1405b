//! Kafka clients for the log: a producer, a reader and the administration of its topics.

pub(crate) mod producer;
pub(crate) mod reader;
pub mod topic;
