//! Tells the readers, every second, where the log ends: a token of a position behind that was never given to anybody.
//!
//! It runs beside the folding and never holds it up. Readers wait for tokens where it fails.

use std::time::Duration;

use rdkafka::error::KafkaError;
use redis::RedisError;
use redis::aio::ConnectionManager;
use schemas::cache::End as Told;
use schemas::cache::{END, Keys};

use crate::log::End;

const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum EndError {
    #[error("Kafka did not tell the log's end")]
    Log(#[from] KafkaError),
    #[error("Redis did not take the log's end")]
    Redis(#[from] RedisError),
}

/// Publishes it until the log is read no more.
pub(crate) async fn publish(end: End, mut connection: ConnectionManager, keys: Keys) {
    loop {
        match publish_once(&end, &mut connection, &keys).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::debug!(error, "the log's end is not published; queries wait for tokens of any position");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Returns `false` once the log is read no more.
async fn publish_once(end: &End, connection: &mut ConnectionManager, keys: &Keys) -> Result<bool, EndError> {
    // From before: whatever was acknowledged by then is in front of the end.
    let time: (i64, i64) = redis::cmd("TIME").query_async(connection).await?;
    let at_ms = time.0 * 1000 + time.1 / 1000;
    let end = end.clone();
    let offsets = tokio::task::spawn_blocking(move || end.offsets()).await;
    let offsets = match offsets {
        Ok(Some(offsets)) => offsets?,
        Ok(None) | Err(_) => return Ok(false),
    };
    let mut pipe = redis::pipe();
    for (partition, next_offset) in offsets {
        let end = Told { next_offset, at_ms }.to_string();
        pipe.set(keys.end(partition), &end).ignore();
        pipe.publish(keys.news(), format!("{partition} {END}={end}")).ignore();
    }
    let () = pipe.query_async(connection).await?;
    Ok(true)
}
