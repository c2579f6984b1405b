//! Forwards commands between instances: one persistent connection to each peer, with many commands in each message.
//!
//! The connection is a WebSocket on the peer's internal listener: the library provides framing, and the service token
//! is checked once, when the connection is opened.
//!
//! Invariant: a command is sent over a link once; its sender learns whether it may have arrived.

mod client;
mod server;
mod outages;
mod delay;

use std::time::Duration;

use schemas::answers::Answer;
use schemas::commands::Precondition;
use serde::{Deserialize, Serialize};

pub(crate) use client::{Delivery, Links};
pub(crate) use server::serve;

/// The path of links on a peer's internal listener. Its number changes with the message format, so that commands
/// between builds with different formats are refused and retried instead of misread. In an upgrade under load that refuses
/// requests, so a change takes two releases: one that serves both numbers and sends the old format, then one that sends the
/// new one.
pub(crate) const PATH: &str = "/internal/link/3";
/// Maximum number of commands in one message.
const MAX_MESSAGE_COMMANDS: usize = 256;
/// Maximum number of unanswered commands on one link.
const MAX_IN_FLIGHT: usize = 16_384;
/// Maximum size of a sent message; more is split.
const MAX_SENT_BYTES: usize = 4 * 1024 * 1024;
/// Maximum size of a received message, which is one frame. It exceeds [`MAX_SENT_BYTES`] because the previous build
/// sends as much.
pub(crate) const MAX_TAKEN_BYTES: usize = 16 * 1024 * 1024;
/// Upper bound of the bytes that a command's numbers take in a message.
const FRAMING_BYTES: usize = 128;
/// Time after which a peer that sends nothing while answers are due counts as gone.
const SILENCE: Duration = Duration::from_secs(3);

/// A message to the owner of a partition.
#[derive(Debug, Serialize, Deserialize)]
enum ToOwner<'a> {
    Decide {
        /// Microseconds since the link was opened, by the sender's clock. They reveal how long the message was delayed.
        sent_us: u64,
        #[serde(borrow)]
        commands: Vec<Forwarded<'a>>,
    },
    /// Asks the peer to release a partition.
    LetGo { id: u64, partition: u32 },
}

/// A message from the owner of a partition.
#[derive(Debug, Serialize, Deserialize)]
enum FromOwner {
    Answers(Vec<Answered>),
    /// The peer does not own the partition, or no longer does.
    Gone {
        id: u64,
    },
}

/// A command on its way to its owner.
#[derive(Debug, Serialize, Deserialize)]
struct Forwarded<'a> {
    /// Identifies the command's answer on the link.
    id: u64,
    aggregate: &'a str,
    command: &'a str,
    body: &'a [u8],
    key: &'a str,
    precondition: Precondition,
    trace: Option<&'a str>,
    cause: Option<&'a str>,
    internal: bool,
    /// Name of the batch that the command is a line of. Lines of one batch keep their order, even across messages.
    batch: Option<u64>,
    /// See [`crate::request::TimeLimits`].
    in_mailbox_ms: u64,
    /// Milliseconds after sending at which the answer becomes useless. Not a time of day, because the clocks of hosts
    /// differ.
    left_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    id: u64,
    answer: Answer,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(message: &impl Serialize) -> String {
        postcard::to_allocvec(message).unwrap().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Another build decodes these bytes: if they change, [`PATH`] has to change.
    #[test]
    fn messages_under_one_number_are_stable() {
        assert_eq!(PATH, "/internal/link/3");
        let forwarded = Forwarded {
            id: 1,
            aggregate: "product/a",
            command: "restock",
            body: b"{}",
            key: "k",
            precondition: Precondition::Version(2),
            trace: Some("t"),
            cause: None,
            internal: true,
            batch: Some(3),
            in_mailbox_ms: 4,
            left_ms: 5,
        };
        let decide = ToOwner::Decide { sent_us: 300, commands: vec![forwarded] };
        assert_eq!(hex(&decide), "00ac0201010970726f647563742f6107726573746f636b027b7d016b0102010174000101030405");
        assert_eq!(hex(&ToOwner::LetGo { id: 6, partition: 7 }), "010607");
        let accepted = Answer::Accepted {
            version: 2,
            events: vec!["e".into()],
            position: (1, 3),
            replayed: false,
            order: Some("o".into()),
        };
        let rejected =
            Answer::Rejected { rejection: "r".into(), version: 2, position: (1, 3), state: None, price_cents: Some(4) };
        let answers = [accepted, rejected, Answer::OutcomeUnknown].map(|answer| Answered { id: 1, answer });
        assert_eq!(hex(&FromOwner::Answers(answers.into())), "000301000201016501060001016f01010172020106000104010b");
        assert_eq!(hex(&FromOwner::Gone { id: 6 }), "0106");
    }
}
