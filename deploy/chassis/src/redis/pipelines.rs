//! Commands that go out together, by partition.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{FromRedisValue, Pipeline, RedisResult};

use super::{Connection, silent};

/// Commands of several partitions, which are sent without waiting for each other. Those of one partition name keys of
/// one hash tag, and are carried out in their order: in a cluster each partition has a master of its own, which may be
/// away while the others are not.
#[derive(Default)]
pub struct Pipelines(BTreeMap<u32, Pipeline>);

impl Pipelines {
    /// Returns the commands of a partition, to add one.
    pub fn of(&mut self, partition: u32) -> &mut Pipeline {
        self.0.entry(partition).or_default()
    }

    /// Returns what is published, all on one channel, which has a slot of its own. It goes out last.
    pub fn news(&mut self) -> &mut Pipeline {
        self.of(u32::MAX)
    }

    /// Returns the answers by partition, in the order of its commands; an error where one of them failed, or there was no
    /// answer in time.
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
