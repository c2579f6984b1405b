//! What was read of aggregates whose earlier states are kept outside, and not here yet.
//!
//! A state is asked for when the first record of its aggregate was read, and what waits for states is counted: whoever
//! reads the log waits, too, while too much of it does.

use std::collections::VecDeque;

use domain::{Event, TimeMs};
use hashbrown::HashMap;
use schemas::aggregate::AggregateId;

use super::Unavailable;

/// States of one partition that are asked for at once: commands on other aggregates are to find room to ask, too.
const MAX_ASKED: usize = 1024;

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Tails {
    by_aggregate: HashMap<AggregateId, Tail>,
    /// Aggregates whose states are to be asked for. Some may be here by now.
    wanting: VecDeque<AggregateId>,
    /// States that were asked for.
    asked: usize,
    /// About how much memory all of it takes.
    bytes: usize,
}

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
struct Tail {
    commits: Vec<Unfolded>,
    bytes: usize,
    is_asked: bool,
}

/// One commit.
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

    /// `size`: of the commit's record.
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

    /// Its state is here.
    pub(super) fn take(&mut self, aggregate: &AggregateId) -> Vec<Unfolded> {
        let Some(tail) = self.by_aggregate.remove(aggregate) else { return Vec::new() };
        self.asked -= usize::from(tail.is_asked);
        self.bytes -= tail.bytes;
        tail.commits
    }

    /// Asks for states, as many as may be asked for at once. What finds no room is asked for another time.
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

    /// Its state could not be had.
    pub(super) fn want_again(&mut self, aggregate: &AggregateId) {
        if let Some(tail) = self.by_aggregate.get_mut(aggregate)
            && std::mem::take(&mut tail.is_asked)
        {
            self.asked -= 1;
            self.wanting.push_back(aggregate.clone());
        }
    }
}
