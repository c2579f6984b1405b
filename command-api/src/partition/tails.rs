//! Commits that were read of aggregates whose earlier states are in the store and not loaded yet.
//!
//! A state is requested when the first record of its aggregate was read. The waiting commits are accounted for, so that
//! reading pauses while they take too much memory.

use std::collections::VecDeque;

use domain::{Event, TimeMs};
use hashbrown::HashMap;
use schemas::aggregate::AggregateId;

use super::Unavailable;

/// Maximum number of states that a partition requests at once, so that commands on other aggregates can request theirs
/// too.
const MAX_ASKED: usize = 1024;

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Tails {
    by_aggregate: HashMap<AggregateId, Tail>,
    /// Aggregates whose states are to be requested. Some may be in memory by now.
    wanting: VecDeque<AggregateId>,
    /// Number of states that were requested and have not arrived.
    asked: usize,
    /// Approximate memory used by all tails.
    bytes: usize,
}

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
struct Tail {
    commits: Vec<Unfolded>,
    bytes: usize,
    is_asked: bool,
}

/// A commit that waits for the state of its aggregate.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Unfolded {
    pub(super) events: Vec<Event>,
    pub(super) version: u64,
    pub(super) offset: i64,
    pub(super) at: TimeMs,
}

impl Tails {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a commit; `size` is that of its record.
    pub(super) fn push(&mut self, aggregate: &AggregateId, commit: Unfolded, size: usize) {
        const PLACE: usize = (size_of::<AggregateId>() * 2 + size_of::<Tail>()) * 3 / 2;
        let mut bytes = size_of::<Unfolded>() * 3 / 2 + commit.events.len() * size_of::<Event>() + size;
        let tail = self.by_aggregate.entry_ref(aggregate).or_insert_with(|| {
            bytes += PLACE + aggregate.as_str().len();
            self.wanting.push_back(aggregate.clone());
            Tail::default()
        });
        tail.commits.push(commit);
        tail.bytes += bytes;
        self.bytes += bytes;
    }

    /// Removes and returns the commits of an aggregate whose state was loaded.
    pub(super) fn take(&mut self, aggregate: &AggregateId) -> Vec<Unfolded> {
        let Some(tail) = self.by_aggregate.remove(aggregate) else { return Vec::new() };
        self.asked -= usize::from(tail.is_asked);
        self.bytes -= tail.bytes;
        tail.commits
    }

    /// Requests states up to the limit of outstanding requests. A state whose request is refused is requested by a
    /// later call.
    pub(super) fn ask(&mut self, mut ask: impl FnMut(AggregateId) -> Result<(), Unavailable>) {
        while self.asked < MAX_ASKED
            && let Some(aggregate) = self.wanting.pop_front()
        {
            let tail = self.by_aggregate.get_mut(&aggregate);
            let Some(tail) = tail.filter(|tail| !tail.is_asked) else { continue };
            if ask(aggregate.clone()).is_err() {
                return self.wanting.push_front(aggregate);
            }
            tail.is_asked = true;
            self.asked += 1;
        }
    }

    /// Queues the request for a state that could not be loaded again.
    pub(super) fn want_again(&mut self, aggregate: &AggregateId) {
        if let Some(tail) = self.by_aggregate.get_mut(aggregate)
            && std::mem::take(&mut tail.is_asked)
        {
            self.asked -= 1;
            self.wanting.push_back(aggregate.clone());
        }
    }
}
