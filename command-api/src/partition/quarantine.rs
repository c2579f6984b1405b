//! Aggregates that the rules cannot handle.

use std::any::Any;
use std::collections::BTreeMap;

use domain::TimeMs;
use schemas::aggregate::AggregateId;

/// Why nothing is decided on an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// What the panic said.
    pub reason: String,
    pub since: TimeMs,
    /// Its events cannot be folded: only a build that can fold them brings it back.
    pub state_lost: bool,
}

/// What became of a wish to end a quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    Released,
    StateLost,
    NotQuarantined,
}

/// Nearly always empty: asking it costs a comparison.
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

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default()
}
