//! The state of Redis in the model, and its two scripts.

use std::collections::BTreeMap;

use super::postgres::{Row, Stored};
use super::rules::{Rule, Rules};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Position {
    pub(super) incarnation: u8,
    pub(super) revision: u8,
    pub(super) next: u8,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Redis {
    pub(super) position: Option<Position>,
    /// The row of each incarnation.
    pub(super) rows: BTreeMap<u8, Row>,
    /// The next offset with which a row was written, for each incarnation whose row Postgres may lack.
    pub(super) named: BTreeMap<u8, u8>,
    /// The next offset of Postgres, as last recorded.
    pub(super) stored: Option<u8>,
}

/// The input of `show.lua`: a position, with or without a row.
pub(super) struct Show<'a> {
    pub(super) to: Position,
    pub(super) row: Option<&'a Row>,
    /// The next offset of Postgres, as far as it is known.
    pub(super) stored: Option<u8>,
}

impl Redis {
    /// Runs `show.lua`. Returns whether the position was the expected one.
    pub(super) fn show(&mut self, expected: Option<Position>, show: &Show<'_>, rules: &Rules) -> bool {
        if self.position != expected && rules.has(Rule::ComparePosition) {
            return false;
        }
        let Show { to, row, stored } = show;
        if let Some(row) = row {
            let is_newer = self.rows.get(&to.incarnation).is_none_or(|progress| row.len() > progress.len());
            if is_newer {
                self.rows.insert(to.incarnation, (*row).clone());
            }
            if stored.is_none_or(|stored| stored < to.next) {
                self.named.insert(to.incarnation, to.next);
            }
        }
        if let Some(stored) = stored {
            self.named.retain(|_, next| *next > *stored);
            self.stored = self.stored.max(Some(*stored));
        }
        self.position = Some(*to);
        true
    }

    pub(super) fn lacks_row(&self) -> bool {
        self.position.is_some_and(|position| !self.rows.contains_key(&position.incarnation))
    }

    /// Runs `fill.lua`.
    pub(super) fn fill(&mut self, before: Position, read: &Stored, rules: &Rules) {
        let Some(position) = self.position else { return };
        let is_same = (position.incarnation, position.revision) == (before.incarnation, before.revision);
        let is_whole = read.parked.is_empty() || !rules.has(Rule::FillWhole);
        if !is_same || !is_whole {
            return;
        }
        if position.next > read.next {
            let is_named = self.named.contains_key(&position.incarnation) && rules.has(Rule::NameRowsAhead);
            let is_noted = self.stored.is_some_and(|stored| stored <= read.next) || !rules.has(Rule::KnowWhatIsNamed);
            if is_named || !is_noted {
                return;
            }
        }
        let progress = self.rows.get(&position.incarnation);
        if progress.is_none_or(|progress| read.row.len() > progress.len()) {
            self.rows.insert(position.incarnation, read.row.clone());
        }
    }
}
