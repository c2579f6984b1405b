//! Aggregates on which the domain rules panicked.

use std::collections::BTreeMap;

use domain::TimeMs;
use schemas::aggregate::AggregateId;

/// Reason why nothing is decided on an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// Text of the panic.
    pub reason: String,
    pub since: TimeMs,
    /// Set if the events cannot be folded: only a build that can fold them restores the aggregate.
    pub state_lost: bool,
}

/// Outcome of a request to end a quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    Released,
    StateLost,
    NotQuarantined,
}

/// Aggregates in quarantine. Nearly always empty, so a lookup costs one comparison.
#[derive(Debug, Default, Clone)]
pub(super) struct Quarantined(BTreeMap<AggregateId, Quarantine>);

impl Quarantined {
    pub(super) fn contains(&self, aggregate: &AggregateId) -> bool {
        !self.0.is_empty() && self.0.contains_key(aggregate)
    }

    pub(super) fn is_state_lost(&self, aggregate: &AggregateId) -> bool {
        !self.0.is_empty() && self.0.get(aggregate).is_some_and(|known| known.state_lost)
    }

    pub(super) fn insert(&mut self, aggregate: &AggregateId, reason: String, since: TimeMs, state_lost: bool) {
        self.0.insert(aggregate.clone(), Quarantine { reason, since, state_lost });
    }

    pub(super) fn all(&self) -> &BTreeMap<AggregateId, Quarantine> {
        &self.0
    }

    pub(super) fn release(&mut self, aggregate: &AggregateId) -> Release {
        match self.0.get(aggregate) {
            None => Release::NotQuarantined,
            Some(Quarantine { state_lost: true, .. }) => Release::StateLost,
            Some(_) => {
                self.0.remove(aggregate);
                Release::Released
            }
        }
    }
}
