//! Changes of positions by processes other than the projector of their share.

use std::time::{Duration, Instant};

use chassis::redis::{Connection, RedisSettings};
use schemas::cache::{Keys, ROW_TTL_SECS, SHOW, Shown};

use super::error::CacheError;
use crate::share::Place;

/// Interval between polls whether a place is shown again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Maximum number of attempts to change a position that another process moves meanwhile.
const CHANGE_TRIES: u32 = 5;

/// Replaces a place's position with the result of `change`. Returns false if there is no position or `change` returns
/// `None`.
pub(crate) async fn change_position(
    connection: &mut Connection,
    keys: &Keys,
    place @ Place { feed, partition }: Place,
    change: impl Fn(Shown) -> Option<Shown>,
) -> Result<bool, CacheError> {
    let (script, key) = (redis::Script::new(SHOW), keys.shown(feed.name(), partition));
    for _ in 0..CHANGE_TRIES {
        let stands: Option<String> = redis::cmd("GET").arg(&key).query_async(connection).await?;
        let Some(changed) = stands.as_deref().and_then(Shown::parse).and_then(&change) else { return Ok(false) };
        let mut call = script.key(&key);
        call.key(keys.ahead(feed.name(), partition)).arg(keys.news()).arg(partition).arg(1).arg(ROW_TTL_SECS);
        call.arg(feed.name()).arg(stands.unwrap_or_default()).arg(changed.to_string()).arg(changed.offset).arg("");
        if call.invoke_async::<u64>(connection).await? == 0 {
            return Ok(true);
        }
    }
    Err(CacheError::Mixed(place.to_string()))
}

/// Declares a place stale in Redis, because its rows in Postgres have changed at the same position. Queries go to
/// Postgres until the place's projector begins a new incarnation.
pub(crate) async fn declare_stale(
    redis: &RedisSettings,
    prefix: &str,
    Place { feed, partition }: Place,
) -> anyhow::Result<()> {
    let mut connection = chassis::redis::connect(redis)?;
    let position = Keys::new(prefix).shown(feed.name(), partition);
    Ok(redis::cmd("DEL").arg(position).query_async(&mut connection).await?)
}

/// Waits until Redis shows a place at this revision or a later one. From then on, no query service serves older rows.
/// Gives up after `within`, because without a projector for the partition it never happens.
pub(crate) async fn await_revision(
    redis: &RedisSettings,
    prefix: &str,
    Place { feed, partition }: Place,
    revision: i64,
    within: Duration,
) -> anyhow::Result<()> {
    let mut connection = chassis::redis::connect(redis)?;
    let (position, begun) = (Keys::new(prefix).shown(feed.name(), partition), Instant::now());
    loop {
        let stands: Option<String> = redis::cmd("GET").arg(&position).query_async(&mut connection).await?;
        let shown = stands.as_deref().and_then(Shown::parse);
        let is_revised = shown.is_some_and(|shown| i64::from(shown.making.revision) >= revision);
        if is_revised || begun.elapsed() > within {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
