//! What the machine is asked, and what it asks of the world.

use domain::{Command, State, TimeMs};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::chain::{ChainError, Passed, Reader};
use schemas::commands::Precondition;
use schemas::exceptions::Unreadable;
use schemas::idempotency::IdempotencyKey;
use schemas::record::{OtherPartitions, Record};

use super::Repeat;

/// A command on its way, with where its answer goes.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct ParsedRequest<R> {
    pub aggregate: AggregateId,
    pub command: Command,
    pub fingerprint: u64,
    pub precondition: Precondition,
    pub key: IdempotencyKey,
    pub cause: Option<Box<str>>,
    pub trace: Option<Box<str>>,
    /// Of a line of a batch: lines of one batch on one aggregate are decided in the order in which they came.
    pub batch: Option<u64>,
    pub reply: R,
}

impl<R> ParsedRequest<R> {
    /// The key under which it is answered once. A command that an event caused has none: its rules know it again,
    /// whenever it comes, and what they say then is what is true then.
    pub(super) fn remembered_key(&self) -> Option<&IdempotencyKey> {
        self.cause.is_none().then_some(&self.key)
    }
}

/// Names a record in its delivery report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Counts the claims of this machine; reports of earlier ones are void.
    pub generation: u16,
    /// In its epoch; 0 is the claim itself.
    pub seq: u64,
}

/// The record did not get an offset, or its offset is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoOffset;

/// The producer's queue is full: nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull;

/// Where a read ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadTo {
    /// The end of the log as of now.
    End,
    /// This offset, exclusive.
    Offset(i64),
}

/// How far the log's events are kept outside, where states and keys can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    pub reader: Reader,
    /// Of the last commit before it.
    pub last_at: TimeMs,
    /// The latest time that a key of a commit before it told.
    pub max_key: TimeMs,
}

/// What the machine lacks of an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRequest {
    pub aggregate: AggregateId,
    pub state: bool,
    /// Whether this key took effect.
    pub key: Option<IdempotencyKey>,
}

/// What is kept of an aggregate, all of it as of one moment.
#[derive(Debug)]
pub struct LoadedAggregate {
    /// Every event before this offset is in it.
    pub checkpoint: i64,
    /// If it was asked for.
    pub state: Option<LoadedState>,
    /// What the key led to, if it was asked for and took effect.
    pub repeat: Option<Repeat>,
}

#[derive(Debug)]
pub struct LoadedState {
    /// The error is what the rules' panic said: its events cannot be folded.
    pub folded: Result<State, String>,
    pub version: u64,
    /// Of its last commit; 0 where it has none.
    pub offset: i64,
}

/// Names of aggregates that are kept outside.
#[derive(Debug)]
pub struct LoadedNames {
    pub from: i64,
    pub until: i64,
    /// Of every aggregate that has an event from the one offset up to the other, and maybe of others.
    pub names: Vec<String>,
}

/// What is kept cannot be asked just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// What the machine asks of the world.
pub trait Effects {
    type Reply;
    /// Hands a record to the producer. Its report comes as [`super::Partition::delivered`].
    fn append(&mut self, key: &str, value: &[u8], ticket: Ticket) -> Result<(), QueueFull>;
    /// Begins to read; whatever is being read is dropped. Records come as [`super::Partition::record`], then
    /// [`super::Partition::read_ended`].
    fn read(&mut self, from: i64, to: ReadTo);
    /// Decodes what was read, by [`schemas::exceptions::Exceptions::decode`].
    fn decode<'a>(&self, offset: i64, value: &'a [u8]) -> Result<Option<Record<'a>>, Unreadable>;
    /// Asks for what is kept of an aggregate. It comes as [`super::Partition::loaded`]. Called only by a machine that
    /// was told of a checkpoint. An error: too much was asked for already.
    fn load(&mut self, wanted: LoadRequest) -> Result<(), Unavailable>;
    /// As [`Self::load`], once more is kept: what came lacks events that memory lacks, too.
    fn load_later(&mut self, wanted: LoadRequest) -> Result<(), Unavailable>;
    /// Asks for the names of aggregates with events from this offset on. Some of them come as [`super::Partition::named`],
    /// as soon as there are any. Called as [`Self::load`] is, and not again before they came.
    fn load_names(&mut self, from: i64);
    fn answer(&mut self, reply: Self::Reply, answer: Answer);
    /// A random number for a claim.
    fn nonce(&mut self) -> u64;
    /// Counted and logged by cause.
    fn doubted(&mut self, cause: DoubtCause);
    fn passed_over(&mut self, reason: Passed);
    /// Another instance took the partition under this one's url.
    fn shares_url(&mut self);
}

/// How far the clock of this instance can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockTrust {
    /// There is nothing to compare it with.
    Unknown,
    Right,
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DoubtCause {
    /// A report named another offset than the chain's.
    Displaced,
    /// A report named none.
    NoOffset,
    /// A look found a hole in the chain.
    Broken,
}

/// The log cannot be this machine's: it halts, as it was before the record.
#[derive(Debug, thiserror::Error)]
pub enum HaltError {
    #[error(transparent)]
    Record(#[from] Unreadable),
    #[error("offset {offset} holds another record than the one that the checkpoint counted there")]
    OtherHistory { offset: i64 },
    #[error("the claim at offset {offset} is of another topic")]
    Partitions { offset: i64, source: OtherPartitions },
    #[error("the log does not continue what was read of it")]
    Chain(#[from] ChainError),
    #[error("the record at offset {offset} names an aggregate {aggregate:?} that cannot be")]
    Aggregate { offset: i64, aggregate: String },
}

/// What an owner turned into, for the caller's policy on when to claim again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Idle,
    /// Reads, to be prepared.
    Preparing,
    /// Can take over at once.
    Prepared,
    /// On the way to own, or to know whether it still does.
    Unsettled,
    Owner,
    /// Answers what it decided, and decides nothing more.
    Leaving,
}

impl Role {
    /// Whether commands belong into its mailbox: decided now, or in a moment.
    pub fn serves(self) -> bool {
        matches!(self, Self::Unsettled | Self::Owner)
    }
}
