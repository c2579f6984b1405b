//! Failures of Redis.

use redis::RedisError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("Redis command failed")]
    Call(#[from] RedisError),
    #[error("the positions of {0} are not those that this projector wrote")]
    Mixed(String),
}
