//! Routes each command to the owner of its partition: the mailbox of an engine in this process, or a peer.

mod lines;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::commands::{CommandError, ParsedCommand, Who, parse, who};
use schemas::idempotency::IdempotencyKey;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::batch_order::{LineInFlight, Route, in_order};
use crate::clock::Clock;
use crate::directory::Directory;
use crate::mailbox::{EngineRequest, Mailbox, NotQueued};
use crate::metrics::Metrics;
use crate::outage::Outage;
use crate::partition::{ClockTrust, ParsedRequest, Quarantine, Release};
use crate::peers::{Delivery, Links};
use crate::request::{CommandRequest, Reply};

/// Maximum lead of a key's timestamp over this instance's clock.
const MAX_KEY_LEAD_MS: u64 = 120_000;
const FIRST_RETRY: Duration = Duration::from_millis(25);
const MAX_RETRY: Duration = Duration::from_millis(400);

pub(crate) struct Dispatcher {
    /// Mailboxes, indexed by partition.
    mailboxes: Arc<[Mailbox]>,
    /// Outages, indexed by partition.
    outages: Vec<Outage>,
    /// URL at which peers reach this instance.
    own_url: Arc<str>,
    directory: Arc<Directory>,
    links: Arc<Links>,
    window: Duration,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Dispatcher {
    pub(crate) fn new(
        mailboxes: Arc<[Mailbox]>,
        own_url: Arc<str>,
        directory: Arc<Directory>,
        links: Arc<Links>,
        window: Duration,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let outages = mailboxes.iter().map(|_| Outage::new()).collect();
        Self { mailboxes, outages, own_url, directory, links, window, clock, metrics }
    }

    pub(crate) fn partitions(&self) -> u32 {
        u32::try_from(self.mailboxes.len()).expect("the number of partitions fits into 32 bits")
    }

    /// Returns whether this instance decides the commands on an aggregate.
    pub(crate) fn owns(&self, aggregate: &AggregateId) -> bool {
        self.mailbox(aggregate.partition(self.partitions())).serves()
    }

    /// Returns the outcome of a single command, whichever instance owns its partition, or that it is unknown at the
    /// deadline. If many commands already wait for a partition that does not answer, a client's command is refused;
    /// internal commands have limits of their own.
    pub(crate) async fn submit(&self, incoming: &CommandRequest) -> Answer {
        let partition = self.partition_of(incoming);
        let (outage, deadline) = (&self.outages[partition as usize], incoming.time_limits.deadline);
        let outcome = pin!(self.bring(partition, incoming));
        if incoming.internal {
            return outage.heard(tokio::time::timeout_at(deadline, outcome).await.unwrap_or(Answer::OutcomeUnknown));
        }
        outage.wait(deadline, outcome).await
    }

    /// Returns the outcome of a command that a peer forwarded. It is not forwarded again.
    pub(crate) async fn submit_forwarded(&self, incoming: &CommandRequest) -> Answer {
        let mailbox = self.mailbox(self.partition_of(incoming));
        if !mailbox.serves() {
            return Answer::Misdirected;
        }
        let outcome = self.deliver(mailbox, incoming);
        tokio::time::timeout_at(incoming.time_limits.deadline, outcome).await.unwrap_or(Answer::OutcomeUnknown)
    }

    /// Releases a partition that a peer is to own, and returns once this instance does not own it.
    pub(crate) async fn let_go(&self, partition: u32) {
        let (done, gone) = oneshot::channel();
        let Some(mailbox) = self.mailboxes.get(partition as usize) else { return };
        if mailbox.requests.send(EngineRequest::LetGo(done)).await.is_ok() {
            // An engine that has ended owns nothing either.
            let _ = gone.await;
        }
    }

    /// Returns the quarantined aggregates of all partitions that this instance owns.
    pub(crate) async fn quarantined(&self) -> BTreeMap<AggregateId, Quarantine> {
        let mut all = BTreeMap::new();
        for mailbox in &*self.mailboxes {
            let (answer, outcome) = oneshot::channel();
            if mailbox.requests.send(EngineRequest::Quarantined(answer)).await.is_ok() {
                all.extend(outcome.await.unwrap_or_default());
            }
        }
        all
    }

    pub(crate) async fn release(&self, aggregate: AggregateId) -> Release {
        let (answer, outcome) = oneshot::channel();
        let mailbox = self.mailbox(aggregate.partition(self.partitions()));
        if mailbox.requests.send(EngineRequest::Release(aggregate, answer)).await.is_err() {
            return Release::NotQuarantined;
        }
        outcome.await.unwrap_or(Release::NotQuarantined)
    }

    fn partition_of(&self, incoming: &CommandRequest) -> u32 {
        incoming.aggregate.partition(self.partitions())
    }

    fn mailbox(&self, partition: u32) -> &Mailbox {
        &self.mailboxes[partition as usize]
    }

    /// Delivers or forwards a command, and retries while ownership moves. A retry is harmless, because the command
    /// carries its key. A line of a batch is sent only once, because a later line could overtake a retry.
    async fn bring(&self, partition: u32, incoming: &CommandRequest) -> Answer {
        let mailbox = self.mailbox(partition);
        let mut pause = FIRST_RETRY;
        loop {
            let answer = match mailbox.serves() {
                true => self.deliver(mailbox, incoming).await,
                false => self.forward_in_order(partition, incoming).await,
            };
            let is_final = !matches!(answer, Answer::NoOwner | Answer::Misdirected | Answer::OutcomeUnknown);
            if is_final || incoming.order.is_some() || Instant::now() + pause >= incoming.time_limits.deadline {
                return if matches!(answer, Answer::Misdirected) { Answer::NoOwner } else { answer };
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_RETRY);
        }
    }

    /// Forwards a command. A line of a batch keeps its place while its owner is being looked up.
    async fn forward_in_order(&self, partition: u32, incoming: &CommandRequest) -> Answer {
        let Some(order) = &incoming.order else { return self.forward(partition, incoming, None).await };
        match order.enter(&incoming.aggregate, Route::Away(None)) {
            Ok(line) => {
                let answer = self.forward(partition, incoming, Some(&line)).await;
                line.end(answer.is_unavailable());
                answer
            }
            Err(answer) => answer,
        }
    }

    /// Forwards a command once, to the owner that the log names. An owner that is unreachable, or that disowns the
    /// partition although the log still names it, is suspected: this instance takes over unless it shows a sign of
    /// life.
    async fn forward(&self, partition: u32, incoming: &CommandRequest, line: Option<&LineInFlight>) -> Answer {
        let Some(url) = self.directory.url(partition).await else { return Answer::NoOwner };
        let answer = if url == self.own_url {
            Answer::Misdirected
        } else if let Some(peer) = self.links.peer(&url) {
            if let Some(Err(answer)) = line.map(|line| line.goes_by(peer.connection)) {
                return answer;
            }
            self.metrics.forwarded();
            match peer.send(incoming.clone()).await {
                Delivery::Answered(answer) => answer,
                Delivery::Unreachable { sent: true } => Answer::OutcomeUnknown,
                Delivery::Unreachable { sent: false } => Answer::NoOwner,
            }
        } else {
            Answer::NoOwner
        };
        if !matches!(answer, Answer::Misdirected | Answer::NoOwner | Answer::OutcomeUnknown) {
            return answer;
        }
        // Refused before the next await, during which a later line could overtake it.
        if let Some(line) = line {
            line.refuse();
        }
        let failed = std::time::Instant::now();
        if self.directory.url_since(partition, failed).await == Some(url) {
            // A full channel already holds such a request.
            let _ = self.mailbox(partition).requests.try_send(EngineRequest::Suspect);
        }
        answer
    }

    async fn deliver(&self, mailbox: &Mailbox, incoming: &CommandRequest) -> Answer {
        let decided = pin!(self.decide(mailbox, incoming));
        in_order(incoming.order.as_ref(), &incoming.aggregate, Route::Here, decided).await
    }

    async fn decide(&self, mailbox: &Mailbox, incoming: &CommandRequest) -> Answer {
        let (answer, outcome) = oneshot::channel();
        let order = incoming.order.clone().map(|order| (order, incoming.aggregate.clone()));
        if let Some(request) = self.read(incoming, Reply::One { answer, order }) {
            match mailbox.put(request, incoming.time_limits, incoming.internal).await {
                Ok(()) => {}
                Err(NotQueued::Full) => {
                    let detail = "too many commands are waiting for this partition or this aggregate".into();
                    return Answer::Overloaded { detail };
                }
                Err(NotQueued::Closed) => return Answer::Misdirected,
            }
        }
        outcome.await.unwrap_or(Answer::OutcomeUnknown)
    }

    /// Parses a command into a request, or answers it if it is invalid. Only the owning instance does this.
    fn read(&self, incoming: &CommandRequest, reply: Reply) -> Option<ParsedRequest<Reply>> {
        match self.parse(incoming) {
            Ok(ParsedCommand { command, fingerprint }) => Some(ParsedRequest {
                aggregate: incoming.aggregate.clone(),
                command,
                fingerprint,
                precondition: incoming.precondition,
                key: incoming.key.clone(),
                cause: incoming.cause.clone(),
                trace: incoming.trace.clone(),
                batch: incoming.order.as_ref().map(|order| order.name()),
                reply,
            }),
            Err(answer) => {
                reply.send(answer);
                None
            }
        }
    }

    /// Parses the body and checks the age of the key.
    fn parse(&self, incoming: &CommandRequest) -> Result<ParsedCommand, Answer> {
        let CommandRequest { aggregate, command, body, precondition, .. } = incoming;
        // The listener has checked staff, also of a command that a peer forwarded.
        match who(aggregate.aggregate(), command) {
            Some(Who::Internal) if !incoming.internal => return Err(Answer::NoSuchCommand),
            Some(Who::Internal | Who::Staff | Who::Client) | None => {}
        }
        // A reaction may arrive any time after its event; the rules recognize one that was already applied.
        if !incoming.internal || incoming.cause.is_none() {
            self.check_age(&incoming.key)?;
        }
        parse(aggregate, command, body, *precondition, incoming.origin()).map_err(|error| match error {
            CommandError::Unknown => Answer::NoSuchCommand,
            CommandError::Body(detail) => Answer::Invalid { detail },
        })
    }

    fn check_age(&self, key: &IdempotencyKey) -> Result<(), Answer> {
        let Some(made) = key.time() else { return Ok(()) };
        let (now, clock) = self.clock.look();
        // An instance with a wrong clock is about to release its partitions.
        if clock == ClockTrust::Wrong {
            return Err(Answer::Misdirected);
        }
        let window_ms = u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX);
        if made.0.saturating_add(window_ms) < now.0 || made.0 > now.0 + MAX_KEY_LEAD_MS {
            let detail = format!("the server's time is {}", schemas::time::to_rfc3339(now));
            return Err(Answer::KeyExpired { detail });
        }
        Ok(())
    }
}
