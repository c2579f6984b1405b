//! Commands between instances: one persistent connection to each peer, with many commands in each message.
//!
//! It is a WebSocket on the peer's internal listener: the library brings framing, and the service token is
//! checked once, when the connection begins.
//!
//! Invariant: a command is sent over a link once; its sender learns whether it may have arrived.

mod client;
mod server;
mod delay;

use std::time::Duration;

use schemas::answers::Answer;
use schemas::commands::Precondition;
use serde::{Deserialize, Serialize};

pub(crate) use client::{Delivery, Links};
pub(crate) use server::serve;

/// The path of links on a peer's internal listener. Its number changes with what is sent: builds that differ in it pass no
/// commands to each other, which are refused and sent again, instead of misreading them.
pub(crate) const PATH: &str = "/internal/link/3";
/// Commands in one message.
const MAX_MESSAGE_COMMANDS: usize = 256;
/// Commands of one link that may wait for their answers.
const MAX_IN_FLIGHT: usize = 16_384;
/// What is sent in one message, beyond which it is split.
const MAX_SENT_BYTES: usize = 4 * 1024 * 1024;
/// What is taken in one message, which is one frame: the build before this one sends as much.
pub(crate) const MAX_TAKEN_BYTES: usize = 16 * 1024 * 1024;
/// More than what a command's numbers take in a message.
const FRAMING_BYTES: usize = 128;
/// A peer that says nothing for so long, while answers are due, is gone.
const SILENCE: Duration = Duration::from_secs(3);

/// What an instance sends to another.
#[derive(Debug, Serialize, Deserialize)]
enum ToOwner<'a> {
    Decide {
        /// Microseconds since the link began, by the clock of the sender's process: what lay somewhere meanwhile shows.
        sent_us: u64,
        #[serde(borrow)]
        commands: Vec<Forwarded<'a>>,
    },
    /// Asks for a partition.
    LetGo { id: u64, partition: u32 },
}

/// And what it hears from there.
#[derive(Debug, Serialize, Deserialize)]
enum FromOwner {
    Answers(Vec<Answered>),
    /// The partition is nobody's there, or not any more.
    Gone {
        id: u64,
    },
}

/// A command on its way to its owner.
#[derive(Debug, Serialize, Deserialize)]
struct Forwarded<'a> {
    /// Of the link; names the answer.
    id: u64,
    aggregate: &'a str,
    command: &'a str,
    body: &'a [u8],
    key: &'a str,
    precondition: Precondition,
    trace: Option<&'a str>,
    cause: Option<&'a str>,
    internal: bool,
    /// Names the batch that it is a line of: those of one keep their order, in however many messages they come.
    batch: Option<u64>,
    /// See [`crate::mailbox::TimeLimits`].
    in_mailbox_ms: u64,
    /// After so long from when it was sent the answer is of no use. No time of day: the clocks of hosts differ.
    left_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    id: u64,
    answer: Answer,
}
