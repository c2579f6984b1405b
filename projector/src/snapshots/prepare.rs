//! `projector snapshots`: writes the snapshots of this build's form before it is released, while another build serves.

use std::time::{Duration, Instant};

use anyhow::bail;
use chassis::postgres::PostgresSettings;
use chassis::telemetry::with_causes;
use schemas::snapshots::FORM;
use schemas::views::JOURNAL;

use super::{EVERY, SnapshotError, connect, keep_one, use_form};

/// Number of aggregates that one statement lists.
const NAMES: i64 = 5000;
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Outcome of [`prepare`]: numbers of aggregates in the journal, and of snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prepared {
    pub looked_at: u64,
    pub made: u64,
    /// Snapshots that existed and were recent enough.
    pub found: u64,
    /// Aggregates whose events this build cannot fold; each was reported.
    pub failed: u64,
}

/// Writes the snapshots and prints its progress. Fails if events cannot be folded: the build should not be released.
pub async fn run(postgres: &PostgresSettings) -> anyhow::Result<()> {
    let prepared = prepare(postgres, |line| println!("{line}")).await?;
    let Prepared { looked_at, made, found, failed } = prepared;
    println!("{looked_at} aggregates: {made} snapshots of form {FORM} written, {found} up to date");
    match failed {
        0 => Ok(()),
        failed => bail!("this build cannot fold the events of {failed} aggregates; do not release it"),
    }
}

/// Writes a snapshot of each long history that has none of this build's form, or an old one. It holds one state at a
/// time, and can be repeated: recent snapshots are left as they are. `tell` receives progress messages.
pub async fn prepare(postgres: &PostgresSettings, tell: impl Fn(String)) -> anyhow::Result<Prepared> {
    let client = connect(postgres).await?;
    use_form(&client).await?;
    let partitions = client.query_one("SELECT count(*) FROM checkpoints WHERE view = $1", &[&JOURNAL]).await?;
    let partitions = u32::try_from(partitions.get::<_, i64>(0)).unwrap_or_default();
    let (mut prepared, mut last, mut told) = (Prepared::default(), String::new(), Instant::now());
    loop {
        let names = client.query(include_str!("../postgres/journal_names.sql"), &[&last, &NAMES]).await?;
        let Some(end) = names.last() else { return Ok(prepared) };
        last = end.get(0);
        prepared.looked_at += names.len() as u64;
        for (name, version) in names.iter().map(|name| (name.get::<_, &str>(0), name.get::<_, i64>(1).cast_unsigned()))
        {
            if version < EVERY {
                continue;
            }
            match keep_one(&client, partitions, name, version).await {
                Ok(true) => prepared.made += 1,
                Ok(false) => prepared.found += 1,
                Err(error @ (SnapshotError::Connect(_) | SnapshotError::Postgres(_))) => return Err(error.into()),
                Err(error) => {
                    prepared.failed += 1;
                    tell(with_causes(&error));
                }
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tell(format!(
                    "{} aggregates checked, {} snapshots written, now at {name}",
                    prepared.looked_at, prepared.made
                ));
            }
        }
    }
}
