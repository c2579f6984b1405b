//! The partitions of the table `repeats`: five minutes each, made ahead of time, dropped when the window is over.
//!
//! The time is the log's: what command-api's clocks said when it decided. A projector whose own clock runs ahead drops
//! nothing early, and what the log says counts only as far as that clock has come: two would have to be wrong.

use std::fmt::Write as _;
use std::ops::Range;
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

/// Makes what is missing and drops what is over. `log_ms`: as above, of what is about to be committed; what others have
/// committed may be later. Returns the times, in milliseconds since 1970, that the table takes.
pub(super) async fn maintain(
    client: &Client,
    window: Duration,
    log_ms: u64,
) -> Result<Range<i64>, tokio_postgres::Error> {
    let row = client.query_one("SELECT coalesce(max(last_at_ms), 0) FROM checkpoints", &[]).await?;
    let committed_ms = row.get::<_, i64>(0).cast_unsigned();
    let log_ms = log_ms.max(committed_ms);
    if log_ms == 0 {
        return Ok(0..0);
    }
    let now = Duration::from_millis(time(log_ms));
    let (first, last) = (slot(now.saturating_sub(window + BEHIND)), slot(now + AHEAD));
    // Whoever else looks after them waits.
    let mut statements = format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK});");
    for slot in first..=last {
        let (from, to) = (slot * SLOT.as_secs(), (slot + 1) * SLOT.as_secs());
        write!(
            statements,
            "CREATE TABLE IF NOT EXISTS repeats_{slot} PARTITION OF repeats \
             FOR VALUES FROM (to_timestamp({from})) TO (to_timestamp({to}));"
        )
        .expect("a String takes all");
    }
    statements.push_str("COMMIT");
    client.batch_execute(&statements).await?;
    let sql = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'repeats'::regclass";
    for row in client.query(sql, &[]).await? {
        let name: String = row.get(0);
        let is_over =
            name.rsplit_once('_').and_then(|(_, slot)| slot.parse::<u64>().ok()).is_some_and(|slot| slot < first);
        if is_over {
            client.batch_execute(&format!("DROP TABLE IF EXISTS {name}")).await?;
        }
    }
    let ms = |slot: u64| i64::try_from(slot * SLOT.as_secs() * 1000).unwrap_or(i64::MAX);
    Ok(ms(first)..ms(last + 1))
}

fn slot(time: Duration) -> u64 {
    time.as_secs() / SLOT.as_secs()
}
