//! `command-api archive` copies the log to a folder of files that never change, and `command-api restore` writes it from
//! there to empty topics.
//!
//! The copy is of the topic of the log and of that of its exceptions: all that is not folded from the log, or made when a
//! log is created. Both subcommands are of this service because it alone creates and writes the topics.
//!
//! Invariant: what a finished file has is a range of the log as Kafka returned it, record by record, without a gap. A
//! process that is killed, or a full disk, costs the file that was being written.
//!
//! Invariant: a restored record has the offset that it had, so claims, epochs, tokens and positions mean what they meant.

mod frame;
mod file;
mod folder;
mod topic_reader;
mod meter;
mod copy;
mod verify;
mod restore;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chassis::admin::AdminServer;
use chassis::clock::now_ms;
use chassis::env::Env;
use chassis::exit::{self, Differs, Misuse};
use chassis::kafka::KafkaSettings;
use chassis::kafka::topic::TopicFacts;
use chassis::listeners::{ListenerSettings, Listeners};
use chassis::postgres::PostgresSettings;
use chassis::readiness::{Condition, Readiness};
use chassis::shutdown::Shutdown;
use chassis::telemetry::{Telemetry, with_causes};
use schemas::topic::LogTopic;

pub use meter::Amount;
pub use restore::Restored;
pub use verify::Verified;

use crate::config;
use crate::kafka::topic::create;
use copy::{Archiver, Pass};
use folder::Folder;

/// Time between the ends of the log that are archived: at most so much of it is lost with the log.
const EVERY: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);
/// Maximum time for Kafka to show a topic.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
const USAGE: &str = "archive FOLDER [--once | --every SECONDS], or archive --verify FOLDER";

/// A log, and the folder that it is archived to.
#[derive(Debug, Clone)]
pub struct Archive {
    pub kafka: KafkaSettings,
    /// Topic of the log.
    pub topic: String,
    pub folder: PathBuf,
}

/// Arguments of `archive`.
#[derive(Debug, PartialEq, Eq)]
enum ArchiveArgs {
    Once(PathBuf),
    Follow(PathBuf, Duration),
    Verify(PathBuf),
}

impl ArchiveArgs {
    fn parse(mut args: impl Iterator<Item = String>) -> Option<Self> {
        let (mut folder, mut once, mut every, mut verify) = (None, false, None, false);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--once" => once = true,
                "--verify" => verify = true,
                "--every" => every = Some(args.next()?.parse().ok().filter(|seconds| *seconds > 0)?),
                option if option.starts_with("--") => return None,
                path => folder = folder.is_none().then(|| Some(PathBuf::from(path)))?,
            }
        }
        let folder = folder?;
        match (once, every, verify) {
            (true, None, false) => Some(Self::Once(folder)),
            (false, None, true) => Some(Self::Verify(folder)),
            (false, every, false) => Some(Self::Follow(folder, every.map_or(EVERY, Duration::from_secs))),
            _ => None,
        }
    }
}

/// Runs the subcommand `archive`.
pub async fn run(env: &Env, args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let args = ArchiveArgs::parse(args).ok_or_else(|| Misuse::new(format!("usage: {USAGE}")))?;
    let archive =
        |folder| anyhow::Ok(Archive { kafka: KafkaSettings::from_env(env)?, topic: config::topic(env)?.name, folder });
    match args {
        ArchiveArgs::Once(folder) => archive(folder)?.once(say).await.map(drop),
        ArchiveArgs::Follow(folder, every) => follow(env, archive(folder)?, every).await,
        ArchiveArgs::Verify(folder) => {
            let postgres = PostgresSettings::optional_from_env(env)?;
            let found = verify(folder.clone(), postgres.as_ref(), say).await?;
            found.faults.iter().for_each(|fault| println!("fault: {fault}"));
            let Verified { log, partitions, amount, at_ms, segments, faults } = &found;
            println!("log {log}, {partitions} partitions: {} records, {} bytes", amount.records, amount.bytes);
            println!("it has every record up to {} s ago", now_ms().saturating_sub(*at_ms) / 1000);
            if postgres.is_some() {
                println!("{segments} closed segments of the journal have the same hashes");
            }
            println!("faults: {}", faults.len());
            if faults.is_empty() { Ok(()) } else { Err(Differs(format!("{} is damaged", folder.display())).into()) }
        }
    }
}

/// Runs the subcommand `restore`.
pub async fn run_restore(env: &Env, mut args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let folder = args.next().ok_or_else(|| Misuse::new("usage: restore FOLDER"))?;
    exit::no_arguments(args)?;
    restore(&KafkaSettings::from_env(env)?, &config::topic(env)?, folder.into(), say).await.map(drop)
}

impl Archive {
    /// Copies to the end that the log has now.
    pub async fn once(self, tell: impl Fn(String) + Send + 'static) -> anyhow::Result<Amount> {
        blocking(move || {
            let archiver = Archiver::begin(&self.kafka, &self.topic, &self.folder)?;
            let mut archiver = archiver.with_context(|| format!("the log {:?} is empty", self.topic))?;
            let Pass { amount, summary, .. } = archiver.pass(&|| false, &tell)?;
            let stored = archiver.stored_bytes()? as f64 / 1e6;
            tell(format!("archived {summary}; the archive takes {stored:.1} MB"));
            Ok(amount)
        })
        .await
    }

    /// Copies what the log gets, until shutdown.
    ///
    /// # Errors
    /// The folder is an archive of another log, or of another history of this one. All other failures are retried.
    pub async fn follow(self, every: Duration, state: Following, shutdown: Shutdown) -> anyhow::Result<()> {
        blocking(move || {
            let is_over = || shutdown.is_requested();
            let mut archiver = None;
            while !is_over() {
                let begun = Instant::now();
                let pause = match self.next_pass(&mut archiver, &is_over) {
                    Ok(Some(at_ms)) => {
                        state.complete_at_ms.store(at_ms, Ordering::Relaxed);
                        state.ready.ready();
                        every
                    }
                    Ok(None) => RETRY.min(every),
                    Err(error) if error.chain().any(|cause| cause.is::<Misuse>()) => return Err(error),
                    Err(error) => {
                        let error = with_causes(error.as_ref());
                        tracing::warn!(error, "archiving failed; retrying");
                        state.ready.waiting(error);
                        // The next attempt begins with what the folder has.
                        archiver = None;
                        RETRY.min(every)
                    }
                };
                while begun.elapsed() < pause && !is_over() {
                    std::thread::sleep(TICK);
                }
            }
            Ok(())
        })
        .await
    }

    /// Returns the time of which the archive has every record, or `None` if the log is empty or the pass was ended.
    fn next_pass(&self, archiver: &mut Option<Archiver>, is_over: &dyn Fn() -> bool) -> anyhow::Result<Option<u64>> {
        if archiver.is_none() {
            *archiver = Archiver::begin(&self.kafka, &self.topic, &self.folder)?;
        }
        let Some(archiver) = archiver else { return Ok(None) };
        let Pass { complete_at_ms, amount, summary } =
            archiver.pass(is_over, &|line| tracing::info!(progress = line.trim(), "archiving"))?;
        if amount.records > 0 {
            tracing::debug!(summary, "archived");
        }
        Ok(complete_at_ms)
    }
}

/// The state of a process that follows a log.
pub struct Following {
    /// Time of which the archive has every record.
    complete_at_ms: Arc<AtomicU64>,
    ready: Condition,
}

impl Following {
    /// Creates the metric `stampede_archive_behind_seconds`. The archive counts as late from now on.
    pub(crate) fn new(telemetry: &Telemetry, ready: Condition) -> Self {
        let complete_at_ms = Arc::new(AtomicU64::new(now_ms()));
        let at_ms = complete_at_ms.clone();
        let what = "Time since the archive last had every record of the log; of `command-api archive`.";
        telemetry.observed_seconds_gauge("stampede_archive_behind", &[], what, move |gauge| {
            gauge.observe(now_ms().saturating_sub(at_ms.load(Ordering::Relaxed)) as f64 / 1000.0, &[]);
        });
        Self { complete_at_ms, ready }
    }
}

/// Archives until a signal, with an admin listener at `ADMIN_ADDR` if that is set.
async fn follow(env: &Env, archive: Archive, every: Duration) -> anyhow::Result<()> {
    let (shutdown, telemetry, readiness) = (Shutdown::on_signals()?, Telemetry::new("command-api")?, Readiness::new());
    let state = Following::new(&telemetry, readiness.condition("archive"));
    let listeners = Listeners::new(&ListenerSettings::from_env(env)?, &telemetry)?;
    let admin = env.optional::<SocketAddr>("ADMIN_ADDR")?.map(|addr| {
        let admin = AdminServer::bind(&listeners, addr, "command-api", readiness.clone(), &telemetry)?;
        tracing::info!(admin.addr = %admin.local_addr(), "listening");
        admin.serve(shutdown.clone())
    });
    let admin = admin.transpose()?;
    let followed = archive.follow(every, state, shutdown).await;
    if let Some(admin) = admin {
        admin.stop().await;
    }
    followed
}

/// Verifies an archive, and compares it with the journal's closed segments if there is a database.
pub async fn verify(
    folder: PathBuf,
    postgres: Option<&PostgresSettings>,
    tell: impl Fn(String) + Send + 'static,
) -> anyhow::Result<Verified> {
    let segments = match postgres {
        Some(postgres) => verify::segments(postgres).await?,
        None => Vec::new(),
    };
    blocking(move || verify::verify(&folder, &segments, &tell)).await
}

/// Creates the topics of a log, and writes the records of an archive to them. May be called again after a failure at any
/// point; then it first compares what the topics have.
pub async fn restore(
    kafka: &KafkaSettings,
    to: &LogTopic,
    folder: PathBuf,
    tell: impl Fn(String) + Send + 'static,
) -> anyhow::Result<Restored> {
    let folder = Folder::open(&folder)?;
    let partitions = folder.manifest.partitions;
    if to.partitions.is_some_and(|wanted| wanted != partitions) {
        let reason = format!("EVENTS_PARTITIONS must be {partitions}, the number of partitions of the archived log");
        return Err(Misuse::new(reason).into());
    }
    let to = LogTopic { partitions: Some(partitions), ..to.clone() };
    create(kafka, &to).await?;
    let judge = |is: &TopicFacts| {
        let time = is.setting(TIME).filter(|kind| kind != OF_SENDER);
        let differs =
            time.map(|kind| format!("{TIME} is {kind:?}, not {OF_SENDER:?}, so records would lose their time"));
        let others = to.differences(is.partitions, is.replication, |name| is.setting(name));
        others.into_iter().chain(differs).collect()
    };
    let (condition, shutdown) = (Readiness::new().condition("kafka"), Shutdown::new());
    let found = tokio::time::timeout(ANSWERS_WITHIN, kafka.await_topic(&to.name, judge, &condition, &shutdown)).await;
    found.with_context(|| format!("Kafka has no topic {:?}", to.name))??;
    let kafka = kafka.clone();
    blocking(move || {
        let restored = restore::restore(&kafka, &to.name, &folder, &tell)?;
        tell(format!("restored the log {} to {:?}: {}", restored.log, to.name, restored.summary));
        Ok(restored)
    })
    .await
}

/// Setting of a topic that says whose time its records have.
const TIME: &str = "message.timestamp.type";
const OF_SENDER: &str = "CreateTime";

fn say(line: String) {
    println!("{line}");
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the thread panicked")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_one_folder_and_one_thing_to_do() {
        let parse = |text: &str| ArchiveArgs::parse(text.split_whitespace().map(str::to_owned));
        let folder = || PathBuf::from("a");
        assert_eq!(parse("a --once"), Some(ArchiveArgs::Once(folder())));
        assert_eq!(parse("--verify a"), Some(ArchiveArgs::Verify(folder())));
        assert_eq!(parse("a"), Some(ArchiveArgs::Follow(folder(), EVERY)));
        assert_eq!(parse("--every 5 a"), Some(ArchiveArgs::Follow(folder(), Duration::from_secs(5))));
        for text in
            ["", "--once", "a b", "a --every", "a --every 0", "a --once --verify", "a --once --every 3", "a --x"]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
