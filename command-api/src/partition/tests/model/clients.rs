//! Commands of the clients, and their outcomes.

use domain::ids::OrderId;
use domain::product::{By, Command};
use schemas::answers::Answer;

use crate::partition::DoubtCause;
use crate::partition::tests::register;

/// Command that clients may send.
pub(super) struct Wish {
    pub(super) key: &'static str,
    pub(super) command: fn() -> Command,
}

/// Commands of the clients. The stock rejects the reservation until the restock counts; the registration is sent before
/// the search begins.
pub(super) const WISHES: [Wish; 4] = [
    Wish { key: "registration", command: || register(0) },
    Wish { key: "restock", command: || Command::Restock { quantity: 1 } },
    Wish {
        key: "reserve",
        command: || Command::Reserve { order: OrderId("o".into()), quantity: 1, by: By::Client { hold_secs: None } },
    },
    Wish { key: "last", command: || Command::Restock { quantity: 1 } },
];
pub(super) const RESTOCK: usize = 1;
pub(super) const RESERVE: usize = 2;
pub(super) const LAST: usize = 3;

/// Maximum number of attempts of each command, under the same key.
pub(super) const TRIES: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Attempt {
    NotYet,
    /// Sent to an owner when the log had this length.
    Open {
        owner: usize,
        asked_at: usize,
    },
    Answered,
    /// Answered as not counting.
    Refused,
    /// The owner crashed.
    Forgotten,
}

/// An answer, or a doubt of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    Accepted,
    Replayed,
    Rejected,
    Overloaded,
    NoOwner,
    Displaced,
    NoOffset,
    Broken,
}

impl Told {
    pub(super) const ALL: [Self; 8] = [
        Self::Accepted,
        Self::Replayed,
        Self::Rejected,
        Self::Overloaded,
        Self::NoOwner,
        Self::Displaced,
        Self::NoOffset,
        Self::Broken,
    ];

    /// Returns `None` for an answer that no owner may give in the model.
    pub(super) fn of(answer: &Answer) -> Option<Self> {
        Some(match answer {
            Answer::Accepted { replayed: true, .. } => Self::Replayed,
            Answer::Accepted { .. } => Self::Accepted,
            Answer::Rejected { .. } => Self::Rejected,
            Answer::Overloaded { .. } => Self::Overloaded,
            Answer::NoOwner | Answer::Misdirected => Self::NoOwner,
            Answer::PreconditionFailed { .. }
            | Answer::KeyReused
            | Answer::KeyExpired { .. }
            | Answer::Invalid { .. }
            | Answer::NoSuchCommand
            | Answer::Quarantined
            | Answer::OutcomeUnknown => return None,
        })
    }
}

impl From<DoubtCause> for Told {
    fn from(cause: DoubtCause) -> Self {
        match cause {
            DoubtCause::Displaced => Self::Displaced,
            DoubtCause::NoOffset => Self::NoOffset,
            DoubtCause::Broken => Self::Broken,
        }
    }
}
