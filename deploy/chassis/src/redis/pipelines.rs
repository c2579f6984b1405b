//! Commands to Redis that are sent together, grouped by partition.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{FromRedisValue, Pipeline, RedisResult};

use super::{Connection, silent};

/// Pipelines of several partitions, sent concurrently. The commands of one partition use keys with one hash tag and run
/// in order. In a cluster each partition is on one master, which may be unavailable while others are not.
#[derive(Default)]
pub struct Pipelines(BTreeMap<u32, Pipeline>);

impl Pipelines {
    /// Returns the pipeline of a partition, for adding commands.
    pub fn of(&mut self, partition: u32) -> &mut Pipeline {
        self.0.entry(partition).or_default()
    }

    /// Returns the pipeline of published notifications; their channel has a slot of its own. Sent last.
    pub fn news(&mut self) -> &mut Pipeline {
        self.of(u32::MAX)
    }

    /// Sends all pipelines and returns the answers by partition, in the order of its commands; an error if one of them
    /// failed or did not answer in time.
    pub async fn send<T: FromRedisValue>(
        self,
        connection: &Connection,
        within: Duration,
    ) -> BTreeMap<u32, RedisResult<Vec<T>>> {
        let send = async |(partition, pipeline): (u32, Pipeline)| {
            let mut connection = connection.clone();
            let answers = tokio::time::timeout(within, pipeline.query_async(&mut connection)).await;
            (partition, answers.unwrap_or_else(|_| Err(silent())))
        };
        join_all(self.0.into_iter().map(send)).await.into_iter().collect()
    }
}
