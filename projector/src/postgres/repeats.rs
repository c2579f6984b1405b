//! Maintains the partitions of the table `repeats`: five minutes each, created ahead of time, dropped when the window
//! of their idempotency keys has passed.
//!
//! The time is the log's, taken from command-api's clocks when it decided. So a projector whose own clock is fast drops
//! nothing early. The log's time counts only as far as the projector's clock has come: both clocks would have to be
//! wrong.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use chassis::clock::now_ms;
use tokio_postgres::Client;

/// Key of the advisory lock for changes of the partitions.
const LOCK: i64 = 0x5354_414d_5045_4445;
/// Time that a partition covers; the database function `attach_repeats` has the same.
const SLOT: Duration = Duration::from_secs(300);
/// Time for which partitions are created ahead. A command's time may be a minute ahead of this process's clock; the
/// rest is for a projector that pauses.
const AHEAD: Duration = Duration::from_secs(900);
/// Retention in addition to the window: a key may contain a time two minutes after its command's, from which its window
/// counts.
const BEHIND: Duration = Duration::from_secs(180);

/// Returns the time against which keys expire, in milliseconds since 1970. `log_ms` is the latest time of a commit that
/// was read.
pub(super) fn time(log_ms: u64) -> u64 {
    log_ms.min(now_ms())
}

/// Returns the time before which the keys of commands have expired, in milliseconds since 1970. `log_ms` is that of
/// [`time`].
pub(crate) fn forgotten_before(window: Duration, log_ms: u64) -> u64 {
    let behind = u64::try_from((window + BEHIND).as_millis()).unwrap_or(u64::MAX);
    time(log_ms).saturating_sub(behind)
}

/// Creates missing partitions and drops expired ones. `log_ms` is the latest time of a commit that is about to be
/// committed; other projectors may have committed later ones. Returns the range of times, in milliseconds since 1970,
/// that the table covers, and whether nothing is left to drop.
pub(super) async fn maintain(
    client: &Client,
    window: Duration,
    log_ms: u64,
) -> Result<(Range<i64>, bool), tokio_postgres::Error> {
    let row = client.query_one("SELECT coalesce(max(last_at_ms), 0) FROM checkpoints", &[]).await?;
    let committed_ms = row.get::<_, i64>(0).cast_unsigned();
    let log_ms = log_ms.max(committed_ms);
    if log_ms == 0 {
        return Ok((0..0, true));
    }
    let first = slot(Duration::from_millis(forgotten_before(window, log_ms)));
    let last = slot(Duration::from_millis(time(log_ms)) + AHEAD);
    let attached = attached(client).await?;
    if (first..=last).any(|slot| !attached.contains(&slot)) {
        attach(client, first..=last).await?;
    }
    let mut is_done = true;
    for slot in attached.into_iter().filter(|slot| *slot < first) {
        // DROP waits for readers of the table, such as a backup, and queues all later statements behind it. So the lock
        // timeout is short, and the next call tries again.
        let drop = format!("BEGIN; SET LOCAL lock_timeout = '50ms'; SELECT drop_repeats({slot}); COMMIT");
        if let Err(error) = client.batch_execute(&drop).await {
            client.batch_execute("ROLLBACK").await?;
            tracing::debug!(error = %error, slot, "dropping an expired partition of repeats failed; retrying");
            is_done = false;
            break;
        }
    }
    let ms = |slot: u64| i64::try_from(slot * SLOT.as_secs() * 1000).unwrap_or(i64::MAX);
    Ok((ms(first)..ms(last + 1), is_done))
}

/// Creates and attaches missing partitions, by functions of the database that act for the owner of the tables.
async fn attach(client: &Client, slots: RangeInclusive<u64>) -> Result<(), tokio_postgres::Error> {
    // Serializes concurrent maintenance by several projectors.
    client.batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})")).await?;
    let attached = attached(client).await?;
    let mut statements = String::new();
    for slot in slots.filter(|slot| !attached.contains(slot)) {
        write!(statements, "SELECT attach_repeats({slot});").expect("a String takes all");
    }
    statements.push_str("COMMIT");
    client.batch_execute(&statements).await
}

async fn attached(client: &Client) -> Result<BTreeSet<u64>, tokio_postgres::Error> {
    let sql = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'repeats'::regclass";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().filter_map(|row| row.get::<_, &str>(0).rsplit_once('_')?.1.parse().ok()).collect())
}

fn slot(time: Duration) -> u64 {
    time.as_secs() / SLOT.as_secs()
}
