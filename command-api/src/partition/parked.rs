//! Commands that wait for what is kept outside: their aggregate's state, or whether their key took effect.
//!
//! Invariant: of one aggregate they go on in the order in which they came; nobody overtakes.

use std::collections::VecDeque;

use hashbrown::HashMap;
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;

use super::{Outside, Request};

/// Commands that may wait here.
const MAX_PARKED: usize = 4096;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Parked<R> {
    by_aggregate: HashMap<AggregateId, VecDeque<ParkedRequest<R>>>,
    count: usize,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct ParkedRequest<R> {
    pub(super) request: Request<R>,
    /// It was sent to the log before, in an epoch that ended: whether it counts is what its key's record will tell.
    pub(super) may_count: bool,
    /// What is kept outside of its key is known here by now.
    pub(super) key_known: bool,
}

impl<R> ParkedRequest<R> {
    /// It goes on no further. A command that may count is never called refused.
    pub(super) fn set_back(self, answer: Answer, out: &mut impl Outside<Reply = R>) {
        out.answer(self.request.reply, if self.may_count { Answer::OutcomeUnknown } else { answer });
    }
}

impl<R> Default for Parked<R> {
    fn default() -> Self {
        Self { by_aggregate: HashMap::new(), count: 0 }
    }
}

impl<R> Parked<R> {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= MAX_PARKED
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = (&AggregateId, &str)> {
        let requests = self.by_aggregate.values().flatten().map(|parked| &parked.request);
        requests.map(|request| (&request.aggregate, request.key.as_str()))
    }

    pub(super) fn waits(&self, aggregate: &AggregateId) -> bool {
        self.count > 0 && self.by_aggregate.contains_key(aggregate)
    }

    pub(super) fn push(&mut self, parked: ParkedRequest<R>) {
        self.count += 1;
        self.by_aggregate.entry_ref(&parked.request.aggregate).or_default().push_back(parked);
    }

    /// What is kept outside of this key is known.
    pub(super) fn know_key(&mut self, aggregate: &AggregateId, key: &str) {
        for parked in self.by_aggregate.get_mut(aggregate).into_iter().flatten() {
            parked.key_known |= parked.request.key.as_str() == key;
        }
    }

    /// The next command on the aggregate, if it can go on.
    pub(super) fn pop_if(
        &mut self,
        aggregate: &AggregateId,
        goes_on: impl FnOnce(&ParkedRequest<R>) -> bool,
    ) -> Option<ParkedRequest<R>> {
        let queue = self.by_aggregate.get_mut(aggregate)?;
        let next = queue.pop_front_if(|parked| goes_on(parked))?;
        if queue.is_empty() {
            self.by_aggregate.remove(aggregate);
        }
        self.count -= 1;
        Some(next)
    }

    pub(super) fn take_of(&mut self, aggregate: &AggregateId) -> VecDeque<ParkedRequest<R>> {
        let queue = self.by_aggregate.remove(aggregate).unwrap_or_default();
        self.count -= queue.len();
        queue
    }

    pub(super) fn take(&mut self) -> impl Iterator<Item = ParkedRequest<R>> + use<R> {
        self.count = 0;
        std::mem::take(&mut self.by_aggregate).into_values().flatten()
    }
}
