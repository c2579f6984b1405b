//! `projector rebuild VIEW …`: folds views again from the beginning of the log into tables of their own, compares the
//! result with the live rows, and replaces them. Commands, projectors and queries go on meanwhile.
//!
//! Several views are folded in one pass, up to the live position of the one furthest behind. Then each is finished
//! separately: one with differing rows does not prevent the switch of the others.
//!
//! Live work has priority: the rebuild respects [`Limits`] while it folds, compares and copies to Redis. Short tasks
//! run at full speed: the last records before the comparison and before the switch, and those that live work waits for.
//!
//! The next rows have a table and checkpoints of their own (`…_next`, `…@next`), so that a rebuild that was killed
//! resumes from there. At the end the live checkpoints are locked, the rest of the log up to them is folded, and the
//! same transaction renames the tables and raises the generation of the checkpoints. A projector that folded the old
//! rows notices the switch because its next commit fails.
//!
//! No projector of this build advances the live rows of a view that waits, because another fold made them. After the
//! comparison its next rows are folded up to the position of the other views, so that these need not wait until it has
//! caught up.
//!
//! Redis keeps the rows of each generation under keys of their own. Hot rows are copied there before the switch, and
//! those that change meanwhile are written again, under the lock; then one key per partition makes them live. If Redis
//! fails, the projectors declare its rows of the view stale.
//!
//! The previous rows are kept (`…_kept`, `…@kept`). A rollback works the same way: it folds them up to the live
//! position and switches to them.

mod limits;
mod fold;
mod worker;
mod tables;
mod compare;
mod cache;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use chassis::exit::{Differs, Misuse};
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use schemas::feeds::{FeedId, StoredView};

pub use compare::{Compared, Comparison, Difference};
pub use limits::{Limits, Share};

use crate::config::{Config, Feeds};
use crate::postgres::{Store, Target};
use crate::redis::declare_stale;
use crate::settings;
use crate::share::Place;
use cache::Cache;
use fold::LiveFold;
use tables::{Origin, Tables};

/// Maximum number of attempts at a switch. It and the readers of the tables wait for each other, briefly each time.
const SWITCH_TRIES: u32 = 20;
const SWITCH_RETRY: Duration = Duration::from_millis(300);

/// Options of a rebuild.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub views: Vec<String>,
    /// Set to rebuild all views whose rows another fold made, instead of named ones. Rows that are kept from this build's
    /// fold are folded on; and if `accept` is set, rows are not compared, because they are known to differ.
    pub changed: bool,
    /// Set to fold and compare, and leave the switch to a later rebuild.
    pub prepare: bool,
    /// Set to restore the rows from before the last rebuild.
    pub rollback: bool,
    /// Set to switch even if rows differ: the fold has changed, or the live rows are wrong.
    pub accept: bool,
    pub limits: Limits,
}

/// Outcome of the rebuild of a view.
#[derive(Debug)]
pub struct Report {
    pub view: &'static str,
    pub comparison: Comparison,
    /// Generation that is live now; `None`: nothing was switched, because rows differ.
    pub generation: Option<i32>,
    /// Number of rows that were copied to the new generation in Redis.
    pub copied: usize,
}

impl Options {
    /// Parses the command line after `rebuild`.
    pub fn from_args(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut wish = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--changed" => wish.changed = true,
                "--prepare" => wish.prepare = true,
                "--rollback" => wish.rollback = true,
                "--accept" => wish.accept = true,
                "--threads" => wish.limits.threads = value(&arg, args.next())?,
                "--share" => wish.limits.share = value(&arg, args.next())?,
                "--fast" => wish.limits = Limits::fast(),
                view if !view.starts_with('-') => wish.views.push(view.to_owned()),
                other => bail!(
                    "unknown option {other:?}; usage: projector rebuild VIEW… | --changed [--prepare | --rollback | \
                     --accept] [--threads N] [--share PERCENT] [--fast]; --threads and --share limit the load, --fast \
                     lifts the limits"
                ),
            }
        }
        let why =
            "--rollback restores rows without a comparison, so there is nothing to --accept: leave one of them out";
        ensure!(!(wish.rollback && wish.accept), why);
        ensure!(!(wish.prepare && (wish.rollback || wish.accept)), "--prepare switches nothing: give it alone");
        ensure!(!wish.changed || wish.views.is_empty(), "--changed finds the views by itself: name none");
        ensure!(!(wish.changed && wish.rollback), "--changed restores kept rows by itself: leave --rollback out");
        Ok(wish)
    }
}

fn value<T>(option: &str, value: Option<String>) -> anyhow::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let value = value.with_context(|| format!("{option} requires a number"))?;
    value.parse().with_context(|| format!("invalid value: {option} {value}"))
}

/// Executes the command line after `rebuild` and prints its progress.
///
/// # Errors
/// Also fails if a view was not switched.
pub fn run(config: &Config, args: Vec<String>) -> LocalBoxFuture<'_, anyhow::Result<()>> {
    execute(config, args).boxed_local()
}

async fn execute(config: &Config, args: Vec<String>) -> anyhow::Result<()> {
    let wish = Options::from_args(args.into_iter()).map_err(Misuse::new)?;
    let mut differing = Vec::new();
    let reports = rebuild(config, &wish, |line| println!("{line}")).await?;
    let is_one = reports.len() == 1;
    for Report { view, comparison, .. } in reports.iter().filter(|_| wish.prepare) {
        println!(
            "compared       {} rows of {view}, {} differ from the live ones",
            comparison.rows(),
            comparison.total()
        );
    }
    if wish.prepare {
        return Ok(());
    }
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
        let reason = format!(
            "rows differ ({}); the live rows are unchanged. If the fold has changed or the live rows are wrong, run \
             the same command with --accept to continue from here",
            differing.join(", ")
        );
        return Err(Differs(reason).into());
    }
    Ok(())
}

/// Rebuilds the views and returns one report each. `tell` receives progress messages.
///
/// # Errors
/// Fails before any change if a view cannot be rebuilt. Views already reported as live stay so after a later error.
pub async fn rebuild(config: &Config, wish: &Options, tell: impl Fn(String)) -> anyhow::Result<Vec<Report>> {
    let views = if wish.changed { changed(config).await? } else { views(wish).map_err(Misuse::new)? };
    let Some(first) = views.first() else {
        tell("no view has rows of another fold".to_owned());
        return Ok(Vec::new());
    };
    settings::compare_prefix(config).await?;
    let mut tables = Tables::connect(&config.postgres, *first).await?;
    if wish.rollback {
        for view in &views {
            tables.turn_to(*view).await?;
            tables.check_kept().await?;
        }
    }
    for view in &views {
        tables.turn_to(*view).await?;
        let from_kept = wish.rollback || wish.changed && tables.check_kept().await.is_ok();
        match tables.prepare(from_kept).await? {
            Origin::Nothing => {}
            Origin::Unfinished => tell("resuming an unfinished rebuild".to_owned()),
            Origin::Kept => tell("resuming from the rows before the last rebuild".to_owned()),
        }
    }
    let hindmost = async || tables.hindmost(&views).await;
    let partitions = hindmost().await?.len();
    let feeds = Feeds::of(views.iter().copied().map(FeedId::View));
    let mut fold = LiveFold::new(config, feeds, partitions, wish.limits).await?;
    fold.follow(hindmost, &tell).await?;
    let (records, time) = fold.folded();
    tell(format!("folded         {records} records in {:.2} s", time.as_secs_f64()));
    drop(fold);
    let mut reports = Vec::new();
    for view in views {
        tables.turn_to(view).await?;
        let report = end(config, wish, view, &mut tables, &tell).await?;
        if let Some(generation) = report.generation {
            let copied = report.copied;
            tell(format!("live           generation {generation} of {}; {copied} rows in Redis", report.view));
        }
        reports.push(report);
    }
    Ok(reports)
}

/// Returns the views whose live rows another fold than this build's made.
async fn changed(config: &Config) -> anyhow::Result<Vec<StoredView>> {
    let store = Store::connect(&config.postgres, Target::Live).await?;
    let all = Feeds::of(StoredView::all().map(FeedId::View));
    Ok(store.of_other_folds(all).await?.views().collect())
}

/// Returns the named views, each once.
fn views(wish: &Options) -> anyhow::Result<Vec<StoredView>> {
    let mut views = Vec::new();
    for name in &wish.views {
        let Some(view) = StoredView::named(name) else {
            let names = StoredView::all().map(StoredView::name).join(", ");
            bail!("unknown view {name:?}; known views: {names}");
        };
        if !views.contains(&view) {
            views.push(view);
        }
    }
    ensure!(!views.is_empty(), "rebuild requires the name of at least one view");
    Ok(views)
}

/// Finishes one view, whose next rows have nearly reached the live position.
async fn end(
    config: &Config,
    wish: &Options,
    view: StoredView,
    tables: &mut Tables,
    tell: &dyn Fn(String),
) -> anyhow::Result<Report> {
    tables.analyze().await?;
    let partitions = tables.live().await?.len();
    let mut fold = LiveFold::new(config, Feeds::only(FeedId::View(view)), partitions, wish.limits).await?;
    fold.follow(async || tables.live().await, tell).await?;

    let moment = tables.snapshot().await?;
    fold.to(&moment).await?;
    tables.compare_counted().await?;
    let comparison = match wish.changed && wish.accept {
        true => Comparison::default(),
        false => tables.compare(u32::try_from(partitions)?, wish.limits.share).await?,
    };
    tables.end_snapshot().await?;
    if wish.prepare || comparison.total() > 0 && !wish.accept && !wish.rollback {
        return Ok(Report { view: view.name(), comparison, generation: None, copied: 0 });
    }
    // The live rows, or those of the other views, have moved on meanwhile.
    fold.follow(async || tables.goal().await, tell).await?;

    fold.note_changes();
    let mut cache = None;
    let mut copied = 0;
    match copy(config, wish, view, tables, &mut fold, tell).await {
        Ok(Some((copy, rows))) => (cache, copied) = (Some(copy), rows),
        Ok(None) => {}
        Err(error) => tell(format!("Redis failed; its rows are left to the projectors: {error:#}")),
    }
    let mut tries = 0;
    let Switched { generation, to } = loop {
        tries += 1;
        // Live work waits while the rest is folded under the lock, so keep that rest small.
        fold.to(&tables.goal().await?).await?;
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
        // In a partition without writes, the projector does not notice the switch.
        for partition in 0..u32::try_from(to.len())? {
            let place = Place { feed: FeedId::View(view), partition };
            if let Err(error) = declare_stale(&config.redis, &config.redis_prefix, place).await {
                tell(format!("Redis did not switch; empty it once it is available again: {error:#}"));
                break;
            }
        }
    }
    Ok(Report { view: view.name(), comparison, generation: Some(generation), copied })
}

/// Copies hot rows to Redis, then those that changed meanwhile. Returns `None` if Redis lacks the live rows, too.
async fn copy(
    config: &Config,
    wish: &Options,
    view: StoredView,
    tables: &Tables,
    fold: &mut LiveFold,
    tell: &dyn Fn(String),
) -> anyhow::Result<Option<(Cache, usize)>> {
    let live = tables.live().await?;
    let partitions = u32::try_from(live.len())?;
    let Some(mut cache) = Cache::connect(config, view, tables.generation(), partitions).await? else { return Ok(None) };
    let copied = cache.copy(tables, wish.limits.share).await?;
    fold.follow(async || tables.goal().await, tell).await?;
    cache.put(tables, fold.changes()).await?;
    Ok(Some((cache, copied)))
}

/// Outcome of a switch: the live generation and the next offsets of its rows.
struct Switched {
    generation: i32,
    to: Vec<i64>,
}

/// Switches to the next rows. No projector commits to the view until it returns.
async fn switch(tables: &mut Tables, fold: &mut LiveFold, cache: &mut Option<Cache>) -> anyhow::Result<Switched> {
    let from = tables.lock().await?;
    fold.to(&from).await?;
    if let Some(copy) = cache
        && copy.put(tables, fold.changes()).await.is_err()
    {
        *cache = None;
    }
    let to = tables.next_offsets().await?;
    Ok(Switched { generation: tables.switch().await?, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(args: &str) -> anyhow::Result<Options> {
        Options::from_args(args.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn limits_are_those_beside_live_work_unless_others_are_given() {
        let limits = |args: &str| wish(args).unwrap().limits;
        assert_eq!(limits("product --accept"), Limits::default());
        assert_eq!(limits("product order --fast"), Limits::fast());
        let given = limits("--threads 3 product --share 20");
        assert_eq!((given.threads.get(), given.share), (3, "20".parse().unwrap()));
        assert_eq!(wish("--threads 3 product order").unwrap().views, ["product", "order"]);
    }

    #[test]
    fn an_invalid_option_is_named() {
        for (args, named) in [
            ("product --share 0", "--share 0"),
            ("product --threads none", "--threads none"),
            ("product --threads", "--threads requires a number"),
            ("product --slow", "--slow"),
            ("product --rollback --accept", "leave one of them out"),
            ("product --prepare --accept", "--prepare switches nothing"),
            ("--changed product", "name none"),
            ("--changed --rollback", "leave --rollback out"),
        ] {
            let error = wish(args).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
