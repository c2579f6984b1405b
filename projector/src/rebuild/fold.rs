//! Folds views into their next rows by a number of workers, each of which keeps one thread busy at most.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::limits::{Limits, Share};
use super::worker::Worker;
use crate::config::{Config, Feeds};

const TELL_EVERY: Duration = Duration::from_secs(1);
/// Working time below which the remainder is small enough to be folded without pauses.
const LITTLE: Duration = Duration::from_secs(1);

pub(super) struct LiveFold {
    workers: Vec<Worker>,
    share: Share,
    progress: Arc<AtomicI64>,
    begun: Instant,
}

/// Positions of the next rows, and of the rows that they follow, as sums of next offsets.
#[derive(Debug, Clone, Copy)]
struct Stand {
    next: i64,
    live: i64,
}

impl LiveFold {
    pub(super) async fn new(config: &Config, views: Feeds, partitions: usize, limits: Limits) -> anyhow::Result<Self> {
        let partitions = u32::try_from(partitions).context("too many partitions")?;
        config.learn_exceptions().await?;
        let progress = Arc::new(AtomicI64::new(0));
        let threads = limits.threads.get().min(partitions as usize);
        let mut workers = Vec::new();
        for thread in 0..threads {
            let own = (0..partitions).skip(thread).step_by(threads).collect();
            workers.push(Worker::new(config, views, partitions, own, limits.piece(), progress.clone()).await?);
        }
        Ok(Self { workers, share: limits.share, progress, begun: Instant::now() })
    }

    /// Folds up to rows that move on, with pauses, until little is missing. If they move faster than it folds, it
    /// reports that and continues: only an operator can decide whether live work may wait instead.
    pub(super) async fn follow(
        &mut self,
        live: impl AsyncFn() -> anyhow::Result<Vec<i64>>,
        tell: &dyn Fn(String),
    ) -> anyhow::Result<()> {
        let (share, progress) = (self.share, self.progress.clone());
        let stand = |live: &[i64]| Stand { next: progress.load(Ordering::Relaxed), live: live.iter().sum() };
        loop {
            let begun = Instant::now();
            let (goal, until) = watch::channel(Arc::<[i64]>::from(live().await?));
            let before = stand(&goal.borrow());
            let mut pass = pin!(self.pass(until, share));
            let mut ticks = tokio::time::interval_at((begun + TELL_EVERY).into(), TELL_EVERY);
            loop {
                tokio::select! {
                    ended = &mut pass => break ended?,
                    _ = ticks.tick() => {
                        goal.send_replace(live().await?.into());
                        tell(progress_line(before, stand(&goal.borrow()), begun.elapsed()));
                    }
                }
            }
            // The remainder is the records that arrived during this pass.
            if share.of(begun.elapsed()) < LITTLE {
                return Ok(());
            }
        }
    }

    /// Folds up to these next offsets without pauses, and commits.
    pub(super) async fn to(&mut self, until: &[i64]) -> anyhow::Result<()> {
        self.pass(watch::channel(until.into()).1, Share::ALL).await
    }

    /// Runs all workers up to the goal. After an error this fold is unusable; the next one begins at its last commit.
    async fn pass(&mut self, goal: watch::Receiver<Arc<[i64]>>, share: Share) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        for worker in self.workers.drain(..) {
            tasks.spawn(worker.fold_to(goal.clone(), share));
        }
        while let Some(ended) = tasks.join_next().await {
            self.workers.push(ended.context("a worker panicked")??);
        }
        Ok(())
    }

    /// Returns the number of records in the next rows, and the time since this fold began.
    pub(super) fn folded(&self) -> (i64, Duration) {
        (self.progress.load(Ordering::Relaxed), self.begun.elapsed())
    }

    /// Starts recording the keys of changed rows.
    pub(super) fn note_changes(&mut self) {
        self.workers.iter_mut().for_each(|worker| worker.touched = Some(HashSet::new()));
    }

    /// Returns the keys of rows that changed since the last call.
    pub(super) fn changes(&mut self) -> Vec<String> {
        let touched = self.workers.iter_mut().filter_map(|worker| worker.touched.replace(HashSet::new()));
        touched.flatten().collect::<HashSet<_>>().into_iter().collect()
    }
}

/// Formats the position, the rate, and the time until the next rows meet the moving live ones.
fn progress_line(before: Stand, now: Stand, elapsed: Duration) -> String {
    let a_second = |records: i64| records as f64 / elapsed.as_secs_f64();
    let (rate, live_rate) = (a_second(now.next - before.next), a_second(now.live - before.live));
    let percent = 100 * now.next / now.live.max(1);
    let so_far = format!("{:>12} of {} records  {percent} %  {rate:.0}/s", now.next, now.live);
    if live_rate > 0.0 && live_rate >= rate {
        return format!(
            "{so_far}  live work is faster, {live_rate:.0}/s: wait until fewer commands arrive, or restart with a \
             larger --share or --fast to resume from here"
        );
    }
    let left = (now.live - now.next) as f64 / (rate - live_rate).max(1.0);
    format!("{so_far}  {left:.0} s to go")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(before: (i64, i64), now: (i64, i64)) -> String {
        let stand = |(next, live)| Stand { next, live };
        progress_line(stand(before), stand(now), Duration::from_secs(10)).trim().to_owned()
    }

    #[test]
    fn the_end_is_estimated_where_the_live_rows_will_be_by_then() {
        assert_eq!(line((0, 9_000), (3_000, 9_000)), "3000 of 9000 records  33 %  300/s  20 s to go");
        assert_eq!(line((1_000, 8_000), (4_000, 9_000)), "4000 of 9000 records  44 %  300/s  25 s to go");
        assert_eq!(line((0, 0), (0, 0)), "0 of 0 records  0 %  0/s  0 s to go");
    }

    #[test]
    fn a_rebuild_that_live_work_runs_away_from_says_what_to_do() {
        for now in [(1_000, 11_000), (1_000, 12_000), (0, 11_000)] {
            let line = line((0, 10_000), now);
            assert!(line.contains("live work is faster, ") && line.contains("--share"), "{line}");
        }
    }
}
