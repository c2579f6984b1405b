//! `projector rebuild VIEW …`: folds views anew from the log's beginning beside the live rows, compares the two, and puts
//! the one in the place of the other, while everything goes on.
//!
//! Several views are folded in one pass up to where the hindmost of them is live. Then each is brought to its end by
//! itself: one whose rows differ keeps none of the others from its switch.
//!
//! The next rows have a table and checkpoints of their own (`…_next`, `…@next`), so that a rebuild that was killed goes
//! on from there. At the end the live checkpoints are locked, the rest of the log up to them is folded, and the tables
//! change names in the same transaction. The checkpoints' generation moves with it: whoever folded the old rows finds
//! that out by its next commit, which fails.
//!
//! The live rows of a view that waits, because another fold made them, are folded on by nobody. Once they are compared, the
//! next ones go on to where the other views are, so that these need not wait until it has caught up.
//!
//! Redis has the rows of a generation under keys of their own. What is hot is copied there before the switch, and what
//! changes while it is copied is written again, under the lock; then one key a partition makes it live. Where Redis does not
//! play along, the projectors declare stale what it has of the view.
//!
//! The rows from before stay (`…_kept`, `…@kept`). The way back is the same: they are folded on to where the log is.

mod cache;
mod compare;
mod tables;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use schemas::feeds::{FeedId, StoredView};
use tokio::task::JoinSet;

pub use compare::{Compared, Comparison, Difference};

use crate::config::{Config, Feeds};
use crate::redis::declare_stale;
use crate::settings;
use cache::Cache;
use tables::{Origin, Tables};
use worker::Worker;

const TELL_EVERY: Duration = Duration::from_secs(1);
/// The switch waits for readers of the tables, and they for it, a moment each time.
const SWITCH_TRIES: u32 = 20;
const SWITCH_RETRY: Duration = Duration::from_millis(300);

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    pub views: Vec<String>,
    /// Bring the rows from before the last rebuild back.
    pub rollback: bool,
    /// Switch though rows differ: the fold has changed, or the live rows are wrong.
    pub accept: bool,
}

/// What the rebuild of a view came to.
#[derive(Debug)]
pub struct Report {
    pub view: &'static str,
    pub comparison: Comparison,
    /// The generation that is live now; `None`: nothing was switched, because rows differ.
    pub generation: Option<i32>,
    /// Rows that Redis had, and has of the new generation.
    pub copied: usize,
}

/// Of the command line behind `rebuild`. It prints how it goes; an error: something was not switched.
pub async fn run(config: &Config, args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut wish = Wish::default();
    for arg in args {
        match arg.as_str() {
            "--rollback" => wish.rollback = true,
            "--accept" => wish.accept = true,
            view if !view.starts_with('-') => wish.views.push(view.to_owned()),
            other => bail!("{other:?} is not understood: rebuild VIEW…, with --rollback or --accept"),
        }
    }
    let mut differing = Vec::new();
    let reports = rebuild(config, &wish, |line| println!("{line}")).await?;
    let is_one = reports.len() == 1;
    for Report { view, comparison: Comparison { partitions, differences }, .. } in &reports {
        let of = if is_one { String::new() } else { format!(" of {view}") };
        for (partition, Compared { rows, differences }) in partitions.iter().enumerate() {
            println!("partition {partition:>3}  {rows:>9} rows{of} compared, {differences} differ");
        }
        differences.iter().for_each(|difference| println!("difference     {difference}"));
    }
    for Report { view, comparison, generation, .. } in &reports {
        if generation.is_none() {
            differing.push(format!("{} of {view}", comparison.total()));
        }
    }
    if !differing.is_empty() {
        bail!(
            "rows differ ({}), and the live ones stay. If that is what a changed fold is to do, or the live rows are \
             wrong: the same again with --accept goes on from here",
            differing.join(", ")
        );
    }
    Ok(())
}

/// Rebuilds the views, one report each. `tell` hears how far it is.
///
/// # Errors
/// Before anything is done where a view cannot be rebuilt. Later, the views that `tell` heard to be live stay so.
pub async fn rebuild(config: &Config, wish: &Wish, tell: impl Fn(String)) -> anyhow::Result<Vec<Report>> {
    let views = views(wish)?;
    settings::compare_prefix(config).await?;
    let mut tables = Tables::connect(&config.postgres_url, views[0]).await?;
    if wish.rollback {
        for view in &views {
            tables.turn_to(*view).await?;
            tables.check_kept().await?;
        }
    }
    let mut until: Vec<i64> = Vec::new();
    for view in &views {
        tables.turn_to(*view).await?;
        match tables.prepare(wish.rollback).await? {
            Origin::Nothing => {}
            Origin::Unfinished => tell("going on with a rebuild that did not come to its end".to_owned()),
            Origin::Kept => tell("going on with the rows from before the last rebuild".to_owned()),
        }
        let live = tables.live().await?;
        until =
            if until.is_empty() { live } else { until.iter().zip(live).map(|(one, other)| *one.min(&other)).collect() };
    }
    let mut fold = Fold::new(config, Feeds::of(views.iter().copied().map(FeedId::View)), until.len()).await?;
    fold.to(&until, Some(&tell)).await?;
    let (records, folded_in) = (fold.progress.load(Ordering::Relaxed), fold.begun.elapsed().as_secs_f64());
    tell(format!("folded         {records} records in {folded_in:.2} s"));
    drop(fold);
    let mut reports = Vec::new();
    for view in views {
        tables.turn_to(view).await?;
        let report = end(config, (wish, view), &mut tables, &tell).await?;
        if let Some(generation) = report.generation {
            let copied = report.copied;
            tell(format!("live           generation {generation} of {}; {copied} rows in Redis", report.view));
        }
        reports.push(report);
    }
    Ok(reports)
}

/// Returns the views that are named, each once.
fn views(wish: &Wish) -> anyhow::Result<Vec<StoredView>> {
    let mut views = Vec::new();
    for name in &wish.views {
        let Some(view) = StoredView::named(name) else {
            let names = StoredView::all().map(StoredView::name).join(", ");
            bail!("there is no view {name:?} to rebuild; there are {names}");
        };
        if !views.contains(&view) {
            views.push(view);
        }
    }
    ensure!(!views.is_empty(), "a rebuild wants the name of a view, or several");
    Ok(views)
}

/// Brings one view, folded nearly as far as it lives, to its end.
async fn end(
    config: &Config,
    (wish, view): (&Wish, StoredView),
    tables: &mut Tables,
    tell: &dyn Fn(String),
) -> anyhow::Result<Report> {
    tables.analyze().await?;
    let live = tables.live().await?;
    let mut fold = Fold::new(config, Feeds::only(FeedId::View(view)), live.len()).await?;
    // The live rows went on meanwhile; now it is little.
    fold.to(&live, Some(tell)).await?;
    fold.to(&tables.live().await?, None).await?;

    let moment = tables.snapshot().await?;
    fold.to(&moment, None).await?;
    let comparison = tables.compare(u32::try_from(live.len())?).await?;
    if comparison.total() > 0 && !wish.accept && !wish.rollback {
        return Ok(Report { view: view.name(), comparison, generation: None, copied: 0 });
    }
    if tables.wait() {
        fold.to(&tables.front().await?, Some(tell)).await?;
    }

    fold.note_changes();
    let mut cache = None;
    let mut copied = 0;
    match copy(config, view, tables, &mut fold).await {
        Ok(Some((copy, rows))) => (cache, copied) = (Some(copy), rows),
        Ok(None) => {}
        Err(error) => tell(format!("Redis is left to the projectors: {error:#}")),
    }
    let mut tries = 0;
    let Switched { generation, to } = loop {
        tries += 1;
        match switch(tables, &mut fold, &mut cache).await {
            Ok(switched) => break switched,
            Err(error) if tries < SWITCH_TRIES && tables.is_worth_a_retry(&error) => {
                tables.abandon().await?;
                tokio::time::sleep(SWITCH_RETRY).await;
            }
            Err(error) => return Err(error),
        }
    };
    if let Some(cache) = cache.as_mut().filter(|_| tables.wait()) {
        cache.revise_others().await;
    }
    let has_switched = match &mut cache {
        Some(cache) => cache.switch(&to).await,
        None => false,
    };
    if !has_switched {
        // Nothing tells the projector of a partition in which nothing is written.
        for partition in 0..u32::try_from(to.len())? {
            let place = (FeedId::View(view), partition);
            if let Err(error) = declare_stale(&config.redis_url, &config.redis_prefix, place).await {
                tell(format!("Redis did not switch: once it is back, empty it: {error:#}"));
                break;
            }
        }
    }
    Ok(Report { view: view.name(), comparison, generation: Some(generation), copied })
}

/// What is hot, and what changed meanwhile.
async fn copy(
    config: &Config,
    view: StoredView,
    tables: &Tables,
    fold: &mut Fold,
) -> anyhow::Result<Option<(Cache, usize)>> {
    let live = tables.live().await?;
    let place = (tables.generation(), u32::try_from(live.len())?);
    let Some(mut cache) = Cache::connect(config, view, place).await? else { return Ok(None) };
    let copied = cache.copy(tables).await?;
    fold.to(&tables.live().await?, None).await?;
    cache.put(tables, fold.changes()).await?;
    Ok(Some((cache, copied)))
}

/// What a switch came to: the generation that lives, and the next offsets of its rows.
struct Switched {
    generation: i32,
    to: Vec<i64>,
}

/// While it runs no projector commits to the view.
async fn switch(tables: &mut Tables, fold: &mut Fold, cache: &mut Option<Cache>) -> anyhow::Result<Switched> {
    let from = tables.lock().await?;
    fold.to(&from, None).await?;
    if let Some(copy) = cache
        && copy.put(tables, fold.changes()).await.is_err()
    {
        *cache = None;
    }
    let to = tables.next_offsets().await?;
    Ok(Switched { generation: tables.switch().await?, to })
}

/// Some workers, a thread's work each.
struct Fold {
    workers: Vec<Worker>,
    progress: Arc<AtomicI64>,
    begun: Instant,
}

impl Fold {
    async fn new(config: &Config, views: Feeds, partitions: usize) -> anyhow::Result<Self> {
        let partitions = u32::try_from(partitions).context("a number of partitions")?;
        let progress = Arc::new(AtomicI64::new(0));
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(partitions as usize);
        let mut workers = Vec::new();
        for thread in 0..threads {
            let share = (0..partitions).skip(thread).step_by(threads).collect();
            workers.push(Worker::new(config, views, (partitions, share), progress.clone()).await?);
        }
        Ok(Self { workers, progress, begun: Instant::now() })
    }

    /// Folds on, and commits, up to these next offsets. A fold that failed is over: the next one begins at its last commit.
    async fn to(&mut self, until: &[i64], tell: Option<&dyn Fn(String)>) -> anyhow::Result<()> {
        let until: Arc<[i64]> = until.into();
        let mut tasks = JoinSet::new();
        for worker in self.workers.drain(..) {
            tasks.spawn(worker.fold_to(until.clone()));
        }
        let (total, began) = (until.iter().sum::<i64>(), self.progress.load(Ordering::Relaxed));
        let mut ticks = tokio::time::interval_at((Instant::now() + TELL_EVERY).into(), TELL_EVERY);
        loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    Some(ended) => self.workers.push(ended.context("a worker panicked")??),
                    None => return Ok(()),
                },
                _ = ticks.tick() => {
                    let done = self.progress.load(Ordering::Relaxed);
                    let rate = (done - began) as f64 / self.begun.elapsed().as_secs_f64();
                    let left = (total - done) as f64 / rate.max(1.0);
                    if let Some(tell) = tell {
                        tell(format!("{done:>12} of {total} records  {rate:.0}/s  {left:.0} s to go"));
                    }
                }
            }
        }
    }

    /// From now on.
    fn note_changes(&mut self) {
        self.workers.iter_mut().for_each(|worker| worker.touched = Some(HashSet::new()));
    }

    /// Keys of rows that changed since the last call.
    fn changes(&mut self) -> Vec<String> {
        let touched = self.workers.iter_mut().filter_map(|worker| worker.touched.replace(HashSet::new()));
        touched.flatten().collect::<HashSet<_>>().into_iter().collect()
    }
}
