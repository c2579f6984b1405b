//! The state of the model, and its changes by each step.

use super::postgres::{Row, Stored};
use super::redis::{Position, Redis, Show};
use super::rules::{Rule, Rules};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Projector {
    Away,
    /// The projector has read the checkpoint, but not Redis yet.
    Begins(Stored),
    Folds(Fold),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Fold {
    /// The state that was last committed.
    pub(super) base: Stored,
    /// The state after the commit in flight, and the commit's outcome once it has ended.
    pub(super) commit: Option<(Stored, Option<Ended>)>,
    pub(super) folded: Stored,
    /// The position that the projector wrote to Redis, while it is in sync.
    pub(super) shown: Option<Position>,
    /// Set while the projector still has to declare the row in Redis stale.
    pub(super) takes_back: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Ended {
    Committed,
    Moved,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// The number of records.
    pub(super) log: u8,
    /// The offset of a record that changes another row, and moves this one's position.
    pub(super) stranger: Option<u8>,
    pub(super) stored: Stored,
    pub(super) redis: Redis,
    /// The state to which Redis falls back if its master dies.
    pub(super) replica: Redis,
    pub(super) projectors: [Projector; 2],
    /// A commit in flight of a projector that has died: its expected and its new state.
    pub(super) adrift: Option<(Stored, Stored)>,
    /// A reader about to fill in a row: the position in Redis, and the state of Postgres that it read afterwards.
    pub(super) filler: Option<(Position, Stored)>,
    /// Set while the operator has changed rows in Postgres and still has to declare the row in Redis stale.
    pub(super) is_owed: bool,
    /// The old and the new position, after the operator has switched to rows of another revision. Redis shows them
    /// under the new position if its position is still the old one.
    pub(super) switch: Option<(Position, Position)>,
    pub(super) incarnations: u8,
    pub(super) troubles: u8,
}

impl World {
    pub(super) fn new(stranger: Option<u8>) -> Self {
        let (stored, redis) = (Stored::default(), Redis::default());
        Self {
            log: 0,
            stranger,
            stored: stored.clone(),
            replica: redis.clone(),
            redis,
            projectors: [Projector::Begins(stored), Projector::Away],
            adrift: None,
            filler: None,
            is_owed: false,
            switch: None,
            incarnations: 0,
            troubles: 0,
        }
    }

    pub(super) fn incarnation(&mut self, rules: &Rules) -> u8 {
        if rules.has(Rule::RenameRows) {
            self.incarnations += 1;
        }
        self.incarnations
    }

    /// Resumes from the position in Redis if that is safe, or begins an incarnation at the checkpoint.
    pub(super) fn resume(&mut self, base: &Stored, rules: &Rules) -> Position {
        let may_be_there = |position: &Position| {
            let is_at = position.next == base.next;
            let is_as_made = position.revision == base.revision || !rules.has(Rule::CompareRevision);
            is_as_made && base.is_early(rules) && (is_at || (position.next > base.next && base.next > 0))
        };
        if let Some(stands) = self.redis.position.filter(may_be_there) {
            return stands;
        }
        let to = Position { incarnation: self.incarnation(rules), revision: base.revision, next: base.next };
        let expected = self.redis.position;
        self.redis.show(expected, &Show { to, row: None, stored: Some(base.next) }, rules);
        to
    }

    pub(super) fn fold(&mut self, which: usize, rules: &Rules) {
        let Self { projectors, redis, stranger, .. } = self;
        let Projector::Folds(fold) = &mut projectors[which] else { return };
        fold.folded.fold(*stranger);
        if fold.folded.is_early(rules) {
            fold.show_ahead(redis, rules);
        }
    }

    pub(super) fn commit(stored: &mut Stored, from: &Stored, to: &Stored) -> Ended {
        if (stored.next, stored.revision) != (from.next, from.revision) {
            return Ended::Moved;
        }
        *stored = to.clone();
        Ended::Committed
    }

    pub(super) fn take_in(&mut self, which: usize, rules: &Rules) {
        let Projector::Folds(fold) = &mut self.projectors[which] else { return };
        let Some((committed, ended)) = fold.commit.take() else { return };
        if ended == Some(Ended::Committed) {
            fold.base = committed;
            fold.show_committed(&mut self.redis, rules);
            return;
        }
        // If only the row has changed, the projector restarts with it.
        let is_own = self.stored.next == fold.base.next;
        self.projectors[which] = if is_own { Projector::Begins(self.stored.clone()) } else { Projector::Away };
    }

    pub(super) fn mend(&mut self, which: usize, rules: &Rules) {
        let Projector::Folds(fold) = &self.projectors[which] else { return };
        let left = |stored: &Stored| (stored.next, stored.revision);
        let found = left(&self.stored);
        let under_way = fold.commit.as_ref().map(|(to, _)| left(to));
        if found.1 != fold.base.revision {
            self.projectors[which] = Projector::Begins(self.stored.clone());
            return;
        }
        if found != left(&fold.base) && Some(found) != under_way {
            return;
        }
        let stored = self.stored.clone();
        let position = self.resume(&stored, rules);
        let Self { projectors, redis, .. } = self;
        let Projector::Folds(fold) = &mut projectors[which] else { return };
        fold.shown = Some(position);
        if fold.folded.is_early(rules) {
            match rules.has(Rule::CatchUp) {
                true => fold.show_ahead(redis, rules),
                // Moves the position without the rows that it covers.
                false => fold.move_on(redis, None, rules),
            }
        }
    }

    /// Parks the refused records, in the transaction that moves the checkpoint.
    pub(super) fn refuse(&mut self, which: usize, rules: &Rules) {
        let Projector::Folds(fold) = &mut self.projectors[which] else { return };
        fold.commit = None;
        let mut to = fold.base.clone();
        to.parked.extend((to.next..fold.folded.next).filter(|offset| self.stranger != Some(*offset)));
        to.next = fold.folded.next;
        if Self::commit(&mut self.stored, &fold.base, &to) == Ended::Moved {
            self.projectors[which] = Projector::Away;
            return;
        }
        (fold.base, fold.folded) = (to.clone(), to);
        fold.takes_back = rules.has(Rule::TakeBackRefused);
        if !fold.takes_back {
            fold.show_committed(&mut self.redis, rules);
        }
    }

    pub(super) fn crash(&mut self, which: usize) {
        let gone = std::mem::replace(&mut self.projectors[which], Projector::Away);
        if let Projector::Folds(Fold { base, commit: Some((to, None)), .. }) = gone {
            self.adrift = Some((base, to));
        }
    }

    /// Folds the parked records, or discards them.
    pub(super) fn change_rows(&mut self, is_kept: bool) {
        let parked = std::mem::take(&mut self.stored.parked);
        let to = if is_kept { &mut self.stored.row } else { &mut self.stored.given_up };
        to.extend(&parked);
        self.stored.revision += 1;
        self.is_owed = true;
    }

    pub(super) fn switch_rows(&mut self, rules: &Rules) {
        let next = self.stored.next;
        self.stored.revision += 1;
        let Some(live) = self.redis.position else { return };
        let to = Position { incarnation: self.incarnation(rules), revision: live.revision + 1, next };
        self.redis.rows.insert(to.incarnation, self.stored.row.clone());
        self.switch = Some((live, to));
    }

    pub(super) fn switch_redis(&mut self, rules: &Rules) {
        let Some((live, to)) = self.switch.take() else { return };
        let stands = self.redis.position;
        let is_live = |stands: &Position| (stands.incarnation, stands.revision) == (live.incarnation, live.revision);
        if stands.is_some_and(|stands| is_live(&stands)) {
            self.redis.show(stands, &Show { to, row: None, stored: None }, rules);
        }
    }

    /// Removes rows that no position will refer to again, so that equal states of different interleavings merge.
    pub(super) fn forget_unseen(&mut self) {
        let of_projectors = self.projectors.iter().filter_map(|projector| match projector {
            Projector::Folds(fold) => fold.shown,
            Projector::Away | Projector::Begins(_) => None,
        });
        let of_switch = self.switch.iter().flat_map(|(live, to)| [*live, *to]);
        let of_redis = [self.redis.position, self.replica.position].into_iter().flatten();
        let seen: Vec<_> =
            of_projectors.chain(of_switch).chain(of_redis).map(|position| position.incarnation).collect();
        for redis in [&mut self.redis, &mut self.replica] {
            redis.rows.retain(|incarnation, _| seen.contains(incarnation));
            redis.named.retain(|incarnation, _| seen.contains(incarnation));
        }
    }

    /// Returns whether a reader sees all records that the position covers and that were not discarded, and nothing
    /// else. A change of rows without a record may be noticed a second later, but a projector that knows of it does not
    /// continue from an older row.
    pub(super) fn is_right(&self) -> bool {
        let Some(position) = self.redis.position else { return true };
        let Some(row) = self.redis.rows.get(&position.incarnation) else { return true };
        let is_kept = self.projectors.iter().any(|projector| match projector {
            Projector::Folds(fold) => fold.shown == Some(position) && fold.base == self.stored && !fold.takes_back,
            Projector::Away | Projector::Begins(_) => false,
        });
        if position.revision != self.stored.revision && !is_kept {
            return true;
        }
        let Stored { parked, given_up, .. } = &self.stored;
        let last = row.iter().map(|offset| offset + 1).max().unwrap_or(0);
        let mut named = (0..position.next.max(last)).filter(|offset| self.stranger != Some(*offset));
        let has_all = named.all(|offset| row.contains(&offset) || given_up.contains(&offset));
        let has_more = row.iter().any(|offset| given_up.contains(offset) || is_kept && parked.contains(offset));
        has_all && !has_more
    }

    /// Returns whether Postgres has each record exactly once: in the row, parked or discarded.
    pub(super) fn is_whole(&self) -> bool {
        let Stored { next, row, parked, given_up, .. } = &self.stored;
        let mut all = [&row[..], parked, given_up].concat();
        all.sort_unstable();
        all.into_iter().eq((0..*next).filter(|offset| self.stranger != Some(*offset)))
    }
}

impl Fold {
    /// Shows all folded records, committed or not.
    fn show_ahead(&mut self, redis: &mut Redis, rules: &Rules) {
        let row = self.folded.row.clone();
        self.move_on(redis, Some(&row), rules);
    }

    fn move_on(&mut self, redis: &mut Redis, row: Option<&Row>, rules: &Rules) {
        let Some(shown) = self.shown.filter(|shown| shown.next < self.folded.next) else { return };
        let to = Position { next: self.folded.next, ..shown };
        let row = row.filter(|row| has_changed(row, shown, to));
        let is_there = redis.show(Some(shown), &Show { to, row, stored: Some(self.base.next) }, rules);
        self.shown = is_there.then_some(to);
    }

    /// Shows committed records that are not shown yet. The next script records that they are committed.
    fn show_committed(&mut self, redis: &mut Redis, rules: &Rules) {
        let Some(shown) = self.shown.filter(|shown| shown.next < self.base.next) else { return };
        let (to, stored) = (Position { next: self.base.next, ..shown }, Some(self.base.next));
        // No row is written of an aggregate with parked records.
        let row = Some(&self.base.row).filter(|row| self.base.parked.is_empty() && has_changed(row, shown, to));
        let is_there = redis.show(Some(shown), &Show { to, row, stored }, rules);
        self.shown = is_there.then_some(to);
    }
}

/// Returns whether a row has changed between two positions.
fn has_changed(row: &[u8], from: Position, to: Position) -> bool {
    row.iter().any(|offset| (from.next..to.next).contains(offset))
}
