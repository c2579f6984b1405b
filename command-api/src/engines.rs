//! Starts and stops the engines of all partitions, driven by the consumer group, the clock and shutdown.

use std::sync::Arc;
use std::time::Duration;

use chassis::exit::Misuse;
use chassis::kafka::KafkaSettings;
use chassis::kafka::group::{Assignment, Group, Losses};
use chassis::shutdown::{Shutdown, Tasks};
use chassis::tls;
use schemas::topic::coordination_topic;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::{Config, PeerUrl, PeerUrls, Share};
use crate::directory::Directory;
use crate::dispatcher::Dispatcher;
use crate::engine::{Engine, PartitionIo};
use crate::exceptions::ExceptionLog;
use crate::handover::Handover;
use crate::kafka::producer::{DeliveryReports, Producers};
use crate::kafka::reader::LogReader;
use crate::loader::{LoaderInbox, StateLoader};
use crate::mailbox::{self, Mailbox, Status};
use crate::memory_budget::MemoryBudget;
use crate::metrics::Metrics;
use crate::partition::{ClockTrust, Partition, ReadTo, Role};
use crate::peers::Links;

/// Time that other instances have to take over the partitions of one that is shutting down.
const HANDS_OVER_WITHIN: Duration = Duration::from_secs(4);

pub(crate) struct Engines {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) engines: Tasks,
    /// Indexed by partition.
    pub(crate) mailboxes: Arc<[Mailbox]>,
    /// Statuses of the engines, indexed by partition.
    pub(crate) statuses: Vec<watch::Receiver<Status>>,
    pub(crate) assignment: watch::Receiver<Assignment>,
    /// Reader of single records, separate from the replays.
    pub(crate) log_reader: LogReader,
    /// Set to the reason if this instance cannot work with the tables in Postgres.
    wrong_tables: watch::Receiver<Option<String>>,
    links: Arc<Links>,
    producers: Arc<Producers>,
    membership: Membership,
    clock: Clock,
    /// Shutdown of the engines, which end after the servers.
    shutdown: Shutdown,
}

impl Engines {
    pub(crate) fn start(
        config: &Config,
        partitions: u32,
        log_reader: LogReader,
        internal_url: &PeerUrl,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let (producers, reports) = Producers::new(&config.kafka, &config.topic.name, partitions, config.producers)?;
        let peers = config.peer_urls.clone().unwrap_or_else(|| PeerUrls::of_host(internal_url));
        let tls = peers.use_tls().then(|| tls::client(config.ca_file.as_deref()));
        let tls = tls.transpose().map_err(Misuse::new)?;
        let (membership, assignment) = Membership::of(config)?;
        let (shutdown, mut engines) = (Shutdown::new(), Tasks::new());
        let (wrong, wrong_tables) = watch::channel(None);
        let (loader, inboxes) = start_loader(config, partitions, &log_reader, &mut engines, wrong, &shutdown)?;
        let parts = EngineParts {
            config,
            partitions,
            own_url: internal_url.as_str().into(),
            directory: Arc::new(Directory::new(log_reader.clone(), partitions)),
            links: Arc::new(Links::new(config.service_token.clone(), peers, tls, metrics.clone())),
            producers: Arc::new(producers),
            log_reader: log_reader.clone(),
            replay: LogReader::start(&config.kafka, &config.topic.name)?,
            loader,
            budget: MemoryBudget::new(config.state_max_bytes, partitions),
            assignment: assignment.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        let mut mailboxes = Vec::new();
        for ((partition, reports), inbox) in (0..partitions).zip(reports).zip(inboxes) {
            let (engine, mailbox) = parts.engine(partition, reports, inbox);
            engines.spawn("engine", engine.run(shutdown.clone()));
            mailboxes.push(mailbox);
        }
        let statuses = mailboxes.iter().map(|mailbox| mailbox.status.clone()).collect();
        let mailboxes: Arc<[Mailbox]> = mailboxes.into();
        metrics.observe(&mailboxes, config.state_max_bytes);
        let EngineParts { own_url, directory, links, producers, .. } = parts;
        let dispatcher = Dispatcher::new(
            mailboxes.clone(),
            own_url,
            directory,
            links.clone(),
            config.window,
            clock.clone(),
            metrics,
        );
        Ok(Self {
            wrong_tables,
            dispatcher: Arc::new(dispatcher),
            engines,
            mailboxes,
            statuses,
            assignment,
            log_reader,
            links,
            producers,
            membership,
            clock,
            shutdown,
        })
    }

    /// Runs until shutdown is requested. Fails with the reason if an engine, a producer or anything else ends that
    /// should not.
    pub(crate) async fn run(&mut self, shutdown: &Shutdown) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                reason = self.producers.failed() => {
                    anyhow::bail!("the Kafka producer failed permanently; exiting for a restart: {reason}");
                }
                trust = self.clock.changed() => match trust {
                    ClockTrust::Wrong => self.membership.end().await,
                    ClockTrust::Right | ClockTrust::Unknown => self.membership.begin()?,
                },
                Ok(()) = self.wrong_tables.changed() => {
                    if let Some(why) = self.wrong_tables.borrow_and_update().clone() {
                        return Err(Misuse::new(why).into());
                    }
                }
                Some((name, result)) = self.engines.ended() => {
                    result?;
                    anyhow::bail!("the task {name:?} ended unexpectedly");
                }
            }
        }
    }

    /// Leaves the group, whose other members then request the partitions, and returns once this instance owns none.
    /// Does not wait if there are no other members.
    pub(crate) async fn hand_over(&mut self) {
        let Some(group) = self.membership.group.take() else { return };
        let is_alone = self.assignment.borrow().as_ref().is_none_or(|assigned| assigned.len() == self.statuses.len());
        // Leaving blocks. The handover requests show its outcome.
        let left = tokio::task::spawn_blocking(move || group.leave());
        if is_alone || left.await.is_err() {
            return;
        }
        let handed_over = async {
            for status in &mut self.statuses {
                // An engine that has ended owns nothing.
                let _ = status.wait_for(|status| !status.role().is_some_and(Role::serves)).await;
            }
        };
        if tokio::time::timeout(HANDS_OVER_WITHIN, handed_over).await.is_err() {
            tracing::warn!("some partitions were not taken over in time");
        }
    }

    /// Releases the remaining partitions and answers the commands that were decided.
    pub(crate) async fn end(self, grace: Duration) -> anyhow::Result<()> {
        self.shutdown.trigger();
        let settled = self.engines.drain(grace).await;
        self.links.end().await;
        let producers = self.producers;
        // Flushing and dropping a Kafka client block.
        tokio::task::spawn_blocking(move || {
            producers.flush(grace);
            drop(producers);
        })
        .await?;
        Ok(settled?)
    }
}

/// Membership in the consumer group that assigns the partitions.
struct Membership {
    share: Share,
    kafka: KafkaSettings,
    /// Coordination topic on which the group's members meet.
    topic: String,
    sender: watch::Sender<Assignment>,
    /// `None` while this instance is not a member.
    group: Option<Group>,
}

impl Membership {
    /// Joins the group. Returns the assignment as well.
    fn of(config: &Config) -> anyhow::Result<(Self, watch::Receiver<Assignment>)> {
        let (sender, assignment) = watch::channel(None);
        let (share, kafka, topic) =
            (config.share.clone(), config.kafka.clone(), coordination_topic(&config.topic.name));
        let mut membership = Self { share, kafka, topic, sender, group: None };
        membership.begin()?;
        Ok((membership, assignment))
    }

    /// Requests this instance's share of the partitions.
    fn begin(&mut self) -> anyhow::Result<()> {
        match &self.share {
            Share::Assigned if self.group.is_none() => {
                let sender = self.sender.clone();
                self.group =
                    Some(Group::join(&self.kafka, "command-api", &self.topic, &self.topic, Losses::AtOnce, sender)?);
            }
            Share::Assigned => {}
            Share::These(share) => _ = self.sender.send_replace(Some(Arc::new(share.clone()))),
        }
        Ok(())
    }

    /// Gives up this instance's share and leaves the group, which then assigns it to others.
    async fn end(&mut self) {
        if let Some(group) = self.group.take() {
            // Leaving blocks. If its thread panicked, that has been logged.
            let _ = tokio::task::spawn_blocking(move || group.leave()).await;
        }
        self.sender.send_replace(Some(Arc::default()));
    }
}

/// Parts of which the engines of all partitions are built.
struct EngineParts<'a> {
    config: &'a Config,
    partitions: u32,
    own_url: Arc<str>,
    directory: Arc<Directory>,
    links: Arc<Links>,
    producers: Arc<Producers>,
    log_reader: LogReader,
    /// Reader of whole partitions.
    replay: LogReader,
    loader: Option<StateLoader>,
    budget: MemoryBudget,
    assignment: watch::Receiver<Assignment>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl EngineParts<'_> {
    /// Builds the engine of a partition, and the mailbox by which others reach it.
    fn engine(&self, partition: u32, reports: DeliveryReports, inbox: Option<LoaderInbox>) -> (Engine, Mailbox) {
        let (status, watching) = watch::channel(Status::Role(Role::Idle));
        let (mailbox, lanes, requests) = mailbox::new(watching);
        let engine = Engine {
            machine: Partition::new(partition, self.partitions, self.own_url.to_string(), self.config.window),
            lanes,
            requests,
            reports,
            status,
            assignment: self.assignment.clone(),
            handover: Handover::new(
                partition,
                self.own_url.clone(),
                self.directory.clone(),
                self.links.clone(),
                self.log_reader.clone(),
            ),
            clock: self.clock.clone(),
            io: self.io(partition),
            gauges: mailbox.gauges.clone(),
            inbox,
            budget: self.budget.clone(),
            was_asked: false,
            let_go_by_clock: false,
            served_since: Instant::now(),
        };
        (engine, mailbox)
    }

    fn io(&self, partition: u32) -> PartitionIo {
        PartitionIo {
            partition,
            producers: self.producers.clone(),
            reader: self.replay.clone(),
            metrics: self.metrics.clone(),
            reading: None,
            reads_to: ReadTo::End,
            exceptions: ExceptionLog::of(self.config),
            loader: self.loader.clone(),
            wanted_later: Vec::new(),
            timed: None,
        }
    }
}

/// Starts the loader, if there is a Postgres to load from. Also returns the partitions' inboxes, by partition.
fn start_loader(
    config: &Config,
    partitions: u32,
    log_reader: &LogReader,
    tasks: &mut Tasks,
    wrong: watch::Sender<Option<String>>,
    shutdown: &Shutdown,
) -> anyhow::Result<(Option<StateLoader>, Vec<Option<LoaderInbox>>)> {
    let Some(postgres) = &config.postgres else { return Ok((None, (0..partitions).map(|_| None).collect())) };
    let settings = config.shared(partitions);
    let (loader, inboxes) = StateLoader::start(postgres, settings, partitions, log_reader, tasks, wrong, shutdown)?;
    Ok((Some(loader), inboxes.into_iter().map(Some).collect()))
}
