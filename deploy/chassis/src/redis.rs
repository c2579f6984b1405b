//! The connection to Redis.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError};

use crate::env::Secret;

/// Redis answers in well under a millisecond: whoever waits longer is better served by Postgres.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);

/// For one attempt to connect, the handshake included.
const CONNECTION_TIMEOUT: Duration = Duration::from_millis(500);

/// Commands wait for the reconnection under way, with all of its retries: more than one would turn Redis's absence into
/// slow answers. The next command starts the next attempt, so that trying never ends.
const RETRIES: usize = 1;

/// The pause before that retry is between one and two times this (jitter): while Redis is away, about ten to twenty
/// rounds of attempts a second, however many commands ask for it.
const RETRY_DELAY: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum RedisSetupError {
    #[error("the Redis URL cannot be used")]
    Url(#[source] RedisError),
    #[error("the Redis connection cannot be set up")]
    SetUp(#[source] RedisError),
}

/// A connection that is shared by its clones, opened by the first command, and opened anew when lost.
///
/// A command fails after 0.5 s without an answer; without a connection, after 0.1 s where Redis's host refuses, and
/// after 1.1 s where nothing answers. A command that failed this way may have been carried out.
///
/// # Errors
/// [`RedisSetupError`] where the URL is malformed. A server that is not there shows at the first command.
///
/// # Panics
/// Outside a tokio runtime.
pub fn connect(url: &Secret) -> Result<ConnectionManager, RedisSetupError> {
    let client = Client::open(url.expose()).map_err(RedisSetupError::Url)?;
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(CONNECTION_TIMEOUT))
        .set_number_of_retries(RETRIES)
        .set_min_delay(RETRY_DELAY)
        .set_max_delay(RETRY_DELAY);
    ConnectionManager::new_lazy_with_config(client, config).map_err(RedisSetupError::SetUp)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_missing_server_fails_commands_quickly_and_not_the_start() {
        let mut connection = connect(&Secret::from("redis://127.0.0.1:1/")).unwrap();
        let begun = Instant::now();
        for _ in 0..2 {
            redis::cmd("PING").query_async::<String>(&mut connection).await.unwrap_err();
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn an_error_does_not_show_the_url() {
        let error = connect(&Secret::from("http://me:hunter2@host/")).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}
