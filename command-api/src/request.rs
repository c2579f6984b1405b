//! Commands on their way from a listener to their engine, and the recipients of their answers.

mod line_reply;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::commands::{Origin, Precondition};
use schemas::idempotency::IdempotencyKey;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::batch_order::BatchOrder;
pub(crate) use line_reply::{LineAnswers, LineReply};

/// A command as received, with its body unparsed: only its owner parses it.
#[derive(Debug, Clone)]
pub(crate) struct CommandRequest {
    pub(crate) aggregate: AggregateId,
    pub(crate) command: Box<str>,
    pub(crate) body: Bytes,
    pub(crate) key: IdempotencyKey,
    pub(crate) precondition: Precondition,
    pub(crate) trace: Option<Box<str>>,
    /// The event that caused the command.
    pub(crate) cause: Option<Box<str>>,
    /// Set if the command came through the internal listener. It may then be a reaction, of any age, to an event.
    pub(crate) internal: bool,
    pub(crate) time_limits: TimeLimits,
    pub(crate) order: Option<Arc<BatchOrder>>,
}

impl CommandRequest {
    pub(crate) fn origin(&self) -> Origin {
        if self.internal && self.cause.is_some() { Origin::Reaction } else { Origin::Client }
    }
}

/// Time limits of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeLimits {
    /// Maximum wait for its turn once the partition has an owner; after it, the command is refused unexecuted.
    pub(crate) in_mailbox: Duration,
    /// Time after which no caller waits for the answer.
    pub(crate) deadline: Instant,
}

/// The recipient of an answer.
#[derive(Debug)]
pub(crate) enum Reply {
    One { answer: oneshot::Sender<Answer>, order: Option<(Arc<BatchOrder>, AggregateId)> },
    Line(LineReply),
}

impl Reply {
    /// Returns whether an earlier line of the same batch and aggregate was refused.
    pub(crate) fn is_refused(&self) -> bool {
        match self {
            Self::One { order, .. } => order.as_ref().is_some_and(|(order, aggregate)| order.is_refused(aggregate)),
            Self::Line(line) => line.is_refused(),
        }
    }

    pub(crate) fn is_of_batch(&self) -> bool {
        matches!(self, Self::One { order: Some(_), .. } | Self::Line(_))
    }

    pub(crate) fn send(self, answer: Answer) {
        match self {
            Self::One { answer: sender, order } => {
                if let Some((order, aggregate)) = order
                    && answer.is_unavailable()
                {
                    order.refuse(&aggregate);
                }
                // The client may have disconnected; the command's outcome is unaffected.
                let _ = sender.send(answer);
            }
            Self::Line(line) => line.send(answer),
        }
    }
}
