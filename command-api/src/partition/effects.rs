//! Inputs and outputs of a partition's state machine.
//!
//! The store is Postgres, to which the projector writes states, idempotency keys and names of aggregates up to a
//! checkpoint.

use domain::{Command, State, TimeMs};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::chain::{ChainError, Passed, Reader};
use schemas::commands::Precondition;
use schemas::exceptions::Unreadable;
use schemas::idempotency::IdempotencyKey;
use schemas::record::{OtherPartitions, Record};

use super::Repeat;

/// A command on its way to the owner, with the destination of its answer.
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
    /// Batch that the command is a line of; lines of one batch on one aggregate are decided in arrival order.
    pub batch: Option<u64>,
    pub reply: R,
}

impl<R> ParsedRequest<R> {
    /// Returns the key by which the command is deduplicated. A command caused by an event has none: the domain rules
    /// recognize a repetition at any time, and answer it by the current state.
    pub(super) fn remembered_key(&self) -> Option<&IdempotencyKey> {
        self.cause.is_none().then_some(&self.key)
    }
}

/// Identity of a record in its delivery report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Number of claims sent by this state machine so far; reports of earlier generations are ignored.
    pub generation: u16,
    /// Sequence number in the epoch; 0 is the claim itself.
    pub seq: u64,
}

/// Failed delivery: the record got no offset, or its offset is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoOffset;

/// Refused append: the producer's queue is full, and nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull;

/// End of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadTo {
    /// The end of the log when the read starts.
    End,
    /// This offset, exclusive.
    Offset(i64),
}

/// Position in the log up to which the store has states and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    pub reader: Reader,
    /// Time of the last commit before the checkpoint.
    pub last_at: TimeMs,
    /// Latest timestamp in a key of a commit before the checkpoint.
    pub max_key: TimeMs,
}

/// Request for stored data of an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRequest {
    pub aggregate: AggregateId,
    pub state: bool,
    /// Key to look up.
    pub key: Option<IdempotencyKey>,
}

/// Stored data of an aggregate, all of it from one snapshot.
#[derive(Debug)]
pub struct LoadedAggregate {
    /// Offset before which every event is included.
    pub checkpoint: i64,
    /// State of the aggregate, if it was requested.
    pub state: Option<LoadedState>,
    /// Outcome of the command with the requested key, if the key took effect.
    pub repeat: Option<Repeat>,
}

#[derive(Debug)]
pub struct LoadedState {
    /// State of the aggregate, or the text of the panic because of which its events cannot be folded.
    pub folded: Result<State, String>,
    pub version: u64,
    /// Offset of the last commit; 0 if there is none.
    pub offset: i64,
}

/// Names of aggregates, loaded from the store.
#[derive(Debug)]
pub struct LoadedNames {
    pub from: i64,
    pub until: i64,
    /// Names of every aggregate with an event at an offset in `from..until`, and possibly of others.
    pub names: Vec<String>,
}

/// Failed or refused load: the store cannot be queried at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// Side effects that the state machine requests.
pub trait Effects {
    type Reply;
    /// Hands a record to the producer. Its delivery report arrives at [`super::Partition::delivered`].
    fn append(&mut self, key: &str, value: &[u8], ticket: Ticket) -> Result<(), QueueFull>;
    /// Starts a read, and drops the one in progress. Records arrive at [`super::Partition::record`], then
    /// [`super::Partition::read_ended`] is called.
    fn read(&mut self, from: i64, to: ReadTo);
    /// Decodes a record that was read, by [`schemas::exceptions::Exceptions::decode`].
    fn decode<'a>(&self, offset: i64, value: &'a [u8]) -> Result<Option<Record<'a>>, Unreadable>;
    /// Requests stored data of an aggregate, which arrives at [`super::Partition::loaded`]. Called only after a
    /// checkpoint was received. Returns an error if too many requests are outstanding.
    fn load(&mut self, wanted: LoadRequest) -> Result<(), Unavailable>;
    /// Defers a request until the store has advanced: the data just received lacks events that memory lacks too.
    fn load_later(&mut self, wanted: LoadRequest) -> Result<(), Unavailable>;
    /// Requests the names of aggregates with events from this offset on. Some of them arrive at
    /// [`super::Partition::named`] as soon as any are available. Called only after a checkpoint was received, and not
    /// again before names arrive.
    fn load_names(&mut self, from: i64);
    fn answer(&mut self, reply: Self::Reply, answer: Answer);
    /// Returns a random number for a claim.
    fn nonce(&mut self) -> u64;
    /// Counts and logs a doubt by its cause.
    fn doubted(&mut self, cause: DoubtCause);
    fn passed_over(&mut self, reason: Passed);
    /// Reports that another instance took the partition under this instance's URL.
    fn shares_url(&mut self);
}

/// Trust in this instance's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockTrust {
    /// No reference clock is available.
    Unknown,
    Right,
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DoubtCause {
    /// A delivery report named an offset other than the chain's.
    Displaced,
    /// A delivery report named no offset.
    NoOffset,
    /// A read of the log found a gap in the chain.
    Broken,
}

/// Reason to halt: the log cannot be this state machine's. The state remains as it was before the record.
#[derive(Debug, thiserror::Error)]
pub enum HaltError {
    #[error(transparent)]
    Record(#[from] Unreadable),
    #[error(
        "offset {offset} does not hold the record that Postgres has from there: the log was restored without its last \
         records, or replaced. Restore a newer copy of it, or replace the database by an empty one and run `projector \
         recover`, which loses what the log lacks"
    )]
    OtherHistory { offset: i64 },
    #[error("the claim at offset {offset} belongs to another topic")]
    Partitions { offset: i64, source: OtherPartitions },
    #[error("the log does not continue the records read so far")]
    Chain(#[from] ChainError),
    #[error(
        "the log was closed at offset {offset} and continues in another topic, which that claim names: start the services \
         with it as EVENTS_TOPIC"
    )]
    Closed { offset: i64 },
    #[error("the record at offset {offset} names an invalid aggregate {aggregate:?}")]
    Aggregate { offset: i64, aggregate: String },
}

/// Role of an instance in a partition, from which the caller decides when to claim again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Idle,
    /// Reads the log in order to become prepared.
    Preparing,
    /// Has caught up and can take over at once.
    Prepared,
    /// About to become the owner, or verifying that it still is.
    Unsettled,
    Owner,
    /// Answers the commands already decided, and decides nothing more.
    Leaving,
}

impl Role {
    /// Returns whether commands belong in its mailbox, because it decides them now or will shortly.
    pub fn serves(self) -> bool {
        matches!(self, Self::Unsettled | Self::Owner)
    }
}
