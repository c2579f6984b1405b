//! Commands that wait for data from the store: the state of their aggregate, or whether their key took effect.
//!
//! Invariant: lines of one batch on one aggregate proceed in arrival order. Any other command waits only for the data
//! it needs itself: a client whose key has to be looked up delays no other client.

use hashbrown::{HashMap, HashSet};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;

use super::{Effects, ParsedRequest};

/// Maximum number of waiting commands.
const MAX_PARKED: usize = 4096;
/// Maximum number of those commands on one aggregate that wait for their keys.
const MAX_KEYS_OF_ONE: usize = 2048;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct AwaitingLoad<R> {
    by_aggregate: HashMap<AggregateId, Waiting<R>>,
    count: usize,
}

/// Waiting commands on one aggregate.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Waiting<R> {
    /// Waiting commands in arrival order.
    requests: Vec<AwaitingRequest<R>>,
    /// Batches with lines among the waiting commands, and the number of those lines.
    batches: HashMap<u64, usize>,
    /// Set while a request for the aggregate's state is outstanding.
    asks_state: bool,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct AwaitingRequest<R> {
    pub(super) request: ParsedRequest<R>,
    /// Set if the command was sent to the log in an epoch that ended: only the store's entry for its key shows whether
    /// it counts.
    pub(super) may_count: bool,
    /// Set once the store's entry for the key, if there is one, is in memory.
    pub(super) key_known: bool,
}

impl<R> AwaitingRequest<R> {
    /// Answers the command without deciding it. A command that may count is never reported as refused.
    pub(super) fn set_back(self, answer: Answer, out: &mut impl Effects<Reply = R>) {
        out.answer(self.request.reply, if self.may_count { Answer::OutcomeUnknown } else { answer });
    }
}

impl<R> Default for AwaitingLoad<R> {
    fn default() -> Self {
        Self { by_aggregate: HashMap::new(), count: 0 }
    }
}

impl<R> Default for Waiting<R> {
    fn default() -> Self {
        Self { requests: Vec::new(), batches: HashMap::new(), asks_state: false }
    }
}

impl<R> AwaitingLoad<R> {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= MAX_PARKED
    }

    /// Returns whether the limit of commands that wait for their keys is reached on a resident aggregate.
    pub(super) fn is_full_of(&self, aggregate: &AggregateId) -> bool {
        self.by_aggregate.get(aggregate).is_some_and(|waiting| waiting.requests.len() >= MAX_KEYS_OF_ONE)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = (&AggregateId, &str)> {
        let requests = self.by_aggregate.values().flat_map(|waiting| &waiting.requests);
        requests.map(|parked| (&parked.request.aggregate, parked.request.key.as_str()))
    }

    /// Returns whether an earlier line of the command's batch on the same aggregate is waiting.
    pub(super) fn holds_back(&self, request: &ParsedRequest<R>) -> bool {
        let Some(batch) = request.batch.filter(|_| self.count > 0) else { return false };
        self.by_aggregate.get(&request.aggregate).is_some_and(|waiting| waiting.batches.contains_key(&batch))
    }

    /// Returns whether commands wait for the aggregate's state and it was requested.
    pub(super) fn asks_state(&self, aggregate: &AggregateId) -> bool {
        self.by_aggregate.get(aggregate).is_some_and(|waiting| waiting.asks_state)
    }

    pub(super) fn aggregates(&self) -> Vec<AggregateId> {
        self.by_aggregate.keys().cloned().collect()
    }

    pub(super) fn waits(&self, aggregate: &AggregateId) -> bool {
        self.by_aggregate.contains_key(aggregate)
    }

    /// Records that the state of an aggregate with waiting commands was requested, or has arrived.
    pub(super) fn set_asks_state(&mut self, aggregate: &AggregateId, asks: bool) {
        if let Some(waiting) = self.by_aggregate.get_mut(aggregate) {
            waiting.asks_state = asks;
        }
    }

    pub(super) fn push(&mut self, parked: AwaitingRequest<R>) {
        self.count += 1;
        let waiting = self.by_aggregate.entry_ref(&parked.request.aggregate).or_default();
        if let Some(batch) = parked.request.batch {
            *waiting.batches.entry(batch).or_default() += 1;
        }
        waiting.requests.push(parked);
    }

    /// Marks the commands with this key as looked up.
    pub(super) fn know_key(&mut self, aggregate: &AggregateId, key: &str) {
        for parked in self.by_aggregate.get_mut(aggregate).into_iter().flat_map(|waiting| &mut waiting.requests) {
            parked.key_known |= parked.request.key.as_str() == key;
        }
    }

    /// Removes and returns the commands on an aggregate that are ready, in order. A line stays behind waiting lines of
    /// its batch.
    pub(super) fn take_ready(
        &mut self,
        aggregate: &AggregateId,
        is_ready: impl Fn(&AwaitingRequest<R>) -> bool,
    ) -> Vec<AwaitingRequest<R>> {
        let mut held_back = HashSet::new();
        self.take_if(aggregate, |parked| {
            let batch = parked.request.batch;
            let goes_on = is_ready(parked) && batch.is_none_or(|batch| !held_back.contains(&batch));
            if !goes_on {
                held_back.extend(batch);
            }
            goes_on
        })
    }

    /// Removes and returns the commands that wait for a key, with the lines of their batches behind them.
    pub(super) fn take_of_key(&mut self, aggregate: &AggregateId, key: &str) -> Vec<AwaitingRequest<R>> {
        let mut taken = HashSet::new();
        self.take_if(aggregate, |parked| {
            let batch = parked.request.batch;
            let waits_for_key = !parked.key_known && parked.request.key.as_str() == key;
            let goes = waits_for_key || batch.is_some_and(|batch| taken.contains(&batch));
            if goes {
                taken.extend(batch);
            }
            goes
        })
    }

    pub(super) fn take_of(&mut self, aggregate: &AggregateId) -> Vec<AwaitingRequest<R>> {
        self.take_if(aggregate, |_| true)
    }

    pub(super) fn take(&mut self) -> impl Iterator<Item = AwaitingRequest<R>> + use<R> {
        self.count = 0;
        std::mem::take(&mut self.by_aggregate).into_values().flat_map(|waiting| waiting.requests)
    }

    fn take_if(
        &mut self,
        aggregate: &AggregateId,
        mut goes: impl FnMut(&AwaitingRequest<R>) -> bool,
    ) -> Vec<AwaitingRequest<R>> {
        let Some(waiting) = self.by_aggregate.get_mut(aggregate) else { return Vec::new() };
        let taken: Vec<_> = waiting.requests.extract_if(.., |parked| goes(parked)).collect();
        for batch in taken.iter().filter_map(|parked| parked.request.batch) {
            let lines = waiting.batches.get_mut(&batch).expect("each line was counted");
            *lines -= 1;
            if *lines == 0 {
                waiting.batches.remove(&batch);
            }
        }
        if waiting.requests.is_empty() {
            self.by_aggregate.remove(aggregate);
        }
        self.count -= taken.len();
        taken
    }
}
