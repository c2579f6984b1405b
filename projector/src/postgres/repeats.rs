//! The partitions of the table `repeats`: five minutes each, made ahead of time, dropped when the window is over.
//!
//! The time is the log's: what command-api's clocks said when it decided. A projector whose own clock runs ahead drops
//! nothing early, and what the log says counts only as far as that clock has come: two would have to be wrong.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::{Range, RangeInclusive};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;

/// Of one who changes the partitions, in the database.
const LOCK: i64 = 0x5354_414d_5045_4445;
const SLOT: Duration = Duration::from_secs(300);
/// A command's time may be ahead of this process's clock by a minute; the rest is for a projector that pauses.
const AHEAD: Duration = Duration::from_secs(900);
/// A key may tell a time two minutes after its command's, and is kept for the window from there.
const BEHIND: Duration = Duration::from_secs(180);

/// Returns the time by which keys are forgotten, in milliseconds since 1970. `log_ms`: the latest time of a commit that
/// was read.
pub(super) fn time(log_ms: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    log_ms.min(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// Returns the time before which a command's key is over, in milliseconds since 1970. `log_ms`: as of [`time`].
pub(crate) fn forgotten_before(window: Duration, log_ms: u64) -> u64 {
    let behind = u64::try_from((window + BEHIND).as_millis()).unwrap_or(u64::MAX);
    time(log_ms).saturating_sub(behind)
}

/// Makes what is missing and drops what is over. `log_ms`: as above, of what is about to be committed; what others have
/// committed may be later. Returns the times, in milliseconds since 1970, that the table takes, and whether nothing is left
/// to drop.
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
        // It waits for whoever reads the table, as a backup does for long, and others wait behind it: so not for long. The
        // next call tries again.
        let drop = format!("BEGIN; SET LOCAL lock_timeout = '50ms'; DROP TABLE IF EXISTS repeats_{slot}; COMMIT");
        if let Err(error) = client.batch_execute(&drop).await {
            client.batch_execute("ROLLBACK").await?;
            tracing::debug!(error = %error, slot, "a partition of the repeats is over and stays for now");
            is_done = false;
            break;
        }
    }
    let ms = |slot: u64| i64::try_from(slot * SLOT.as_secs() * 1000).unwrap_or(i64::MAX);
    Ok((ms(first)..ms(last + 1), is_done))
}

/// Attaches what is missing. To attach a table, unlike to create a partition, waits for no reader.
async fn attach(client: &Client, slots: RangeInclusive<u64>) -> Result<(), tokio_postgres::Error> {
    // Whoever else looks after them waits.
    client.batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})")).await?;
    let attached = attached(client).await?;
    let mut statements = String::new();
    for slot in slots.filter(|slot| !attached.contains(slot)) {
        let (from, to) = (slot * SLOT.as_secs(), (slot + 1) * SLOT.as_secs());
        write!(
            statements,
            "CREATE TABLE repeats_{slot} (LIKE repeats INCLUDING ALL);
             ALTER TABLE repeats ATTACH PARTITION repeats_{slot}
             FOR VALUES FROM (to_timestamp({from})) TO (to_timestamp({to}));"
        )
        .expect("a String takes all");
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
