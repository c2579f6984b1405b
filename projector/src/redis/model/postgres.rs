//! The state of Postgres in the model.

use super::rules::{Rule, Rules};

/// The offsets of the records that made a row. All records are of its aggregate, except for [`World::stranger`](super::world::World::stranger).
pub(super) type Row = Vec<u8>;

/// The state of Postgres, or a projector's knowledge of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    pub(super) next: u8,
    pub(super) row: Row,
    pub(super) parked: Row,
    pub(super) given_up: Row,
    pub(super) revision: u8,
}

impl Stored {
    /// Folds the next record, or parks it if its aggregate is parked.
    pub(super) fn fold(&mut self, stranger: Option<u8>) {
        if stranger != Some(self.next) {
            let to = if self.parked.is_empty() { &mut self.row } else { &mut self.parked };
            to.push(self.next);
        }
        self.next += 1;
    }

    pub(super) fn is_early(&self, rules: &Rules) -> bool {
        self.parked.is_empty() || !rules.has(Rule::ParkedComesAfter)
    }
}
