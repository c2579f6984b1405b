//! Positions that others than the projector of their share change.

use std::time::{Duration, Instant};

use chassis::env::Secret;
use chassis::redis::Connection;
use schemas::cache::{Keys, ROW_TTL_SECS, SHOW, Shown};

use super::{CacheError, Place, name};

/// Between looks at whether a place is shown again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often a position is changed again that somebody else moves meanwhile.
const CHANGE_TRIES: u32 = 5;

/// Gives a place what `change` makes of its position; `false`: of what stands there it makes nothing.
pub(crate) async fn change_position(
    connection: &mut Connection,
    keys: &Keys,
    (feed, partition): Place,
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
    Err(CacheError::Mixed(name((feed, partition))))
}

/// Declares stale what Redis has of a place, whose rows in Postgres have changed at the position where they were. Queries go
/// to Postgres until its projector begins a new incarnation.
pub(crate) async fn declare_stale((url, prefix): (&Secret, &str), (feed, partition): Place) -> anyhow::Result<()> {
    let mut connection = chassis::redis::connect(url)?;
    let position = Keys::new(prefix).shown(feed.name(), partition);
    Ok(redis::cmd("DEL").arg(position).query_async(&mut connection).await?)
}

/// Waits until Redis shows a place as it was revised: then no query service serves its rows of before any more. While no
/// projector has the partition it does not come to that, and the time ends.
pub(crate) async fn await_revision(
    (url, prefix): (&Secret, &str),
    (feed, partition): Place,
    revision: i64,
    within: Duration,
) -> anyhow::Result<()> {
    let mut connection = chassis::redis::connect(url)?;
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
