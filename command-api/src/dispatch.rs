//! Brings each command to the owner of its partition: the mailbox of an engine in this process, or a peer.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use domain::TimeMs;
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::commands::{CommandError, Precondition, is_internal, parse};
use schemas::idempotency::IdempotencyKey;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::link::Links;
use crate::metrics::Metrics;
use crate::owners::Owners;
use crate::partition::Request;

/// A key's clock may run ahead of ours by so much.
const MAX_KEY_LEAD_MS: u64 = 120_000;
const FIRST_RETRY: Duration = Duration::from_millis(25);
const MAX_RETRY: Duration = Duration::from_millis(400);

/// A command as it came in, its body not read yet: only its owner reads it.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    pub(crate) aggregate: AggregateId,
    pub(crate) command: Box<str>,
    pub(crate) body: Bytes,
    pub(crate) key: IdempotencyKey,
    pub(crate) precondition: Precondition,
    pub(crate) trace: Option<Box<str>>,
    /// Came through the internal listener: may finish what an event began, at any distance in time.
    pub(crate) internal: bool,
    /// Nobody waits for the answer after this.
    pub(crate) deadline: Instant,
    pub(crate) order: Option<Arc<BatchOrder>>,
}

/// What waits in a partition's mailbox.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request<Reply>,
    pub(crate) deadline: Instant,
}

/// Where an answer goes.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) answer: oneshot::Sender<Answer>,
    pub(crate) order: Option<(Arc<BatchOrder>, AggregateId)>,
}

/// The aggregates of a batch that had a line refused: their later lines are refused too.
#[derive(Debug, Default)]
pub(crate) struct BatchOrder {
    refused: Mutex<HashSet<AggregateId>>,
}

impl BatchOrder {
    pub(crate) fn refuse(&self, aggregate: &AggregateId) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(aggregate.clone());
    }

    pub(crate) fn is_refused(&self, aggregate: &AggregateId) -> bool {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).contains(aggregate)
    }
}

impl Reply {
    pub(crate) fn is_refused(&self) -> bool {
        self.order.as_ref().is_some_and(|(order, aggregate)| order.is_refused(aggregate))
    }

    pub(crate) fn send(self, answer: Answer) {
        if let Some((order, aggregate)) = self.order
            && is_unavailable(&answer)
        {
            order.refuse(&aggregate);
        }
        // The client may have gone; the command's outcome stands all the same.
        let _ = self.answer.send(answer);
    }
}

/// Whether a retry may be answered otherwise: a 503.
pub(crate) fn is_unavailable(answer: &Answer) -> bool {
    match answer {
        Answer::Overloaded { .. } | Answer::NoOwner | Answer::Misdirected | Answer::OutcomeUnknown => true,
        Answer::Accepted { .. }
        | Answer::Rejected { .. }
        | Answer::PreconditionFailed { .. }
        | Answer::KeyReused
        | Answer::KeyExpired { .. }
        | Answer::Invalid { .. }
        | Answer::NoSuchCommand => false,
    }
}

/// Bounded by [`crate::engine::MAX_MAILBOX`].
pub(crate) type Mailbox = mpsc::Sender<Job>;

pub(crate) struct Dispatcher {
    /// By partition; `None` where another instance has the share.
    mailboxes: Vec<Option<Mailbox>>,
    owners: Owners,
    links: Links,
    window: Duration,
    metrics: Arc<Metrics>,
}

impl Dispatcher {
    pub(crate) fn new(
        mailboxes: Vec<Option<Mailbox>>,
        owners: Owners,
        links: Links,
        window: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { mailboxes, owners, links, window, metrics }
    }

    pub(crate) fn partitions(&self) -> u32 {
        u32::try_from(self.mailboxes.len()).expect("partitions were counted in 32 bits")
    }

    /// The command's outcome, whoever owns its partition; at the deadline, that it is not known.
    pub(crate) async fn submit(&self, incoming: Incoming) -> Answer {
        let deadline = incoming.deadline;
        let outcome = async {
            match self.mailbox(&incoming) {
                Some(mailbox) => self.deliver(mailbox, incoming).await,
                None => self.forward(incoming).await,
            }
        };
        tokio::time::timeout_at(deadline, outcome).await.unwrap_or(Answer::OutcomeUnknown)
    }

    /// As [`Self::submit`], for a command that was forwarded once already.
    pub(crate) async fn submit_forwarded(&self, incoming: Incoming) -> Answer {
        let deadline = incoming.deadline;
        let Some(mailbox) = self.mailbox(&incoming) else { return Answer::Misdirected };
        tokio::time::timeout_at(deadline, self.deliver(mailbox, incoming)).await.unwrap_or(Answer::OutcomeUnknown)
    }

    fn mailbox(&self, incoming: &Incoming) -> Option<&Mailbox> {
        self.mailboxes[incoming.aggregate.partition(self.partitions()) as usize].as_ref()
    }

    async fn deliver(&self, mailbox: &Mailbox, incoming: Incoming) -> Answer {
        let (answer, outcome) = oneshot::channel();
        let job = match self.read(incoming, answer) {
            Ok(job) => job,
            Err(answer) => return answer,
        };
        // A line of a batch waits for its turn, a lone command is refused early.
        let taken = if job.request.reply.order.is_some() {
            mailbox.send(job).await.is_ok()
        } else {
            mailbox.try_send(job).is_ok()
        };
        if !taken {
            return Answer::Overloaded { detail: "too many commands wait for this partition".into() };
        }
        outcome.await.unwrap_or(Answer::OutcomeUnknown)
    }

    /// Reads the body and checks the key: what the border of the owning instance is for.
    fn read(&self, incoming: Incoming, answer: oneshot::Sender<Answer>) -> Result<Job, Answer> {
        let aggregate = incoming.aggregate.aggregate();
        if is_internal(aggregate, &incoming.command) && !incoming.internal {
            return Err(Answer::NoSuchCommand);
        }
        if !incoming.internal {
            self.check_age(&incoming.key)?;
        }
        let parsed =
            parse(aggregate, &incoming.command, &incoming.body, incoming.precondition).map_err(
                |error| match error {
                    CommandError::Unknown => Answer::NoSuchCommand,
                    CommandError::Body(detail) => Answer::Invalid { detail },
                },
            )?;
        let reply = Reply { answer, order: incoming.order.map(|order| (order, incoming.aggregate.clone())) };
        let request = Request {
            aggregate: incoming.aggregate,
            command: parsed.command,
            fingerprint: parsed.fingerprint,
            precondition: incoming.precondition,
            key: incoming.key,
            cause: None,
            trace: incoming.trace,
            reply,
        };
        Ok(Job { request, deadline: incoming.deadline })
    }

    fn check_age(&self, key: &IdempotencyKey) -> Result<(), Answer> {
        let Some(made) = key.time() else { return Ok(()) };
        let now = now();
        let window_ms = u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX);
        if made.0.saturating_add(window_ms) < now.0 || made.0 > now.0 + MAX_KEY_LEAD_MS {
            let detail = format!("the server's time is {}", schemas::time::to_rfc3339(now));
            return Err(Answer::KeyExpired { detail });
        }
        Ok(())
    }

    /// To the owner that the log names; looked up anew when that one is wrong or away. The command carries its
    /// key, so that to send it again is harmless. A line of a batch is sent once: what is behind it must not
    /// overtake it.
    async fn forward(&self, incoming: Incoming) -> Answer {
        let partition = incoming.aggregate.partition(self.partitions());
        let mut pause = FIRST_RETRY;
        self.metrics.forwarded();
        loop {
            let answer = match self.owners.url(partition).await {
                Some(url) => self.links.send(&url, incoming.clone()).await,
                None => Answer::NoOwner,
            };
            if !is_unavailable(&answer) || matches!(answer, Answer::Overloaded { .. }) || incoming.order.is_some() {
                return answer;
            }
            self.owners.forget(partition);
            if Instant::now() + pause >= incoming.deadline {
                return if matches!(answer, Answer::Misdirected) { Answer::NoOwner } else { answer };
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_RETRY);
        }
    }
}

/// The wall clock.
pub(crate) fn now() -> TimeMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
