//! Clients' own reservations (holds), each for a limited time or until released.
//!
//! The units of a hold are free from the moment it ends. The event that returns them to the stock follows later: when
//! they are needed, or at the product's alarm, which is set to the end of the first hold.

use alloc::collections::BTreeSet;

use super::{Event, Rejection};
use crate::TimeMs;
use crate::growing_map::GrowingMap;
use crate::ids::Fingerprint;

/// Maximum number of holds with different ends that lapse in one event, unless more of their units are needed:
/// removing them takes milliseconds, during which other commands wait.
const MAX_AT_ONCE: usize = 10_000;
/// Minimum delay of the next alarm, so that holds that end one by one lapse together.
const ALARM_EVERY_MS: u64 = 1000;

/// Units that a client reserved for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    pub quantity: u32,
    /// End of the hold, from which its units are free.
    pub until: Option<TimeMs>,
}

/// A compact hold, with its end in two words to avoid 8-byte alignment, since there may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    quantity: u32,
    /// End in milliseconds, as two halves; [`NEVER`] if the hold has no end.
    until: [u32; 2],
}

const NEVER: u64 = u64::MAX;

impl From<Hold> for Kept {
    fn from(Hold { quantity, until }: Hold) -> Self {
        let until = until.map_or(NEVER, |until| until.0).to_le_bytes();
        let half = |at: usize| u32::from_le_bytes(core::array::from_fn(|index| until[at + index]));
        Self { quantity, until: [half(0), half(4)] }
    }
}

impl From<Kept> for Hold {
    fn from(Kept { quantity, until: [low, high] }: Kept) -> Self {
        let until = u64::from(high) << 32 | u64::from(low);
        Self { quantity, until: (until != NEVER).then_some(TimeMs(until)) }
    }
}

/// Clients' own reservations, by the fingerprints of the ids that they chose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holds {
    by_name: GrowingMap<Fingerprint, Kept>,
    /// Holds that have an end, ordered by it.
    ends: BTreeSet<(TimeMs, Fingerprint)>,
    alarm_at: Option<TimeMs>,
}

/// Holds that have ended and whose units are to be returned to the stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lapsed {
    /// All holds that ended by this time are included.
    until: TimeMs,
    quantity: u64,
    /// End of the first remaining hold.
    next: Option<TimeMs>,
    /// Time of the next alarm.
    alarm_at: Option<TimeMs>,
}

impl Holds {
    /// Reassembles holds from the entries that [`Self::iter`] returned.
    pub fn of(holds: impl IntoIterator<Item = (Fingerprint, Hold)>, alarm_at: Option<TimeMs>) -> Self {
        let mut all = Self { alarm_at, ..Self::default() };
        holds.into_iter().for_each(|(name, hold)| all.insert(name, hold));
        all
    }

    /// Iterates over all holds that have not lapsed by an event, in arbitrary order.
    pub fn iter(&self) -> impl Iterator<Item = (Fingerprint, Hold)> {
        self.by_name.iter().map(|(name, kept)| (*name, (*kept).into()))
    }

    /// Returns the time of the alarm, as set by the last event.
    pub fn alarm_at(&self) -> Option<TimeMs> {
        self.alarm_at
    }

    /// Estimates the memory of the holds beyond their own size, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        /// Bytes of a map slot, as measured by the domain's memory test.
        const HOLD: usize = 75;
        /// Bytes of an entry in the set of ends.
        const END: usize = 45;
        self.by_name.len() * HOLD + self.ends.len() * END
    }

    /// Returns the hold of this name, unless it has ended.
    pub(super) fn get(&self, name: &Fingerprint, at: TimeMs) -> Option<Hold> {
        self.find(name).filter(|hold| hold.until.is_none_or(|until| until > at))
    }

    /// Returns the holds that must lapse before `missing` units can be taken, and before a hold named `new` can be
    /// added: units of ended holds are free even before an event says so.
    pub(super) fn make_room(
        &self,
        missing: u64,
        new: Option<&Fingerprint>,
        at: TimeMs,
    ) -> Result<Option<Lapsed>, Rejection> {
        if missing == 0 && new.is_none_or(|name| !self.by_name.contains_key(name)) {
            return Ok(None);
        }
        let lapsed = self.lapsed(missing, new, at);
        if missing > lapsed.map_or(0, |lapsed| lapsed.quantity) {
            return Err(Rejection::OutOfStock);
        }
        Ok(lapsed)
    }

    /// Lapses the holds that have ended. If there are none, and the last alarm was for a hold that has been released,
    /// sets another alarm.
    pub(super) fn lapse(&self, at: TimeMs) -> Option<Event> {
        if let Some(lapsed) = self.lapsed(0, None, at) {
            return Some(lapsed.into());
        }
        let is_missing = self.alarm_at.is_none_or(|alarm_at| alarm_at <= at);
        let alarm_at = self.first().filter(|_| is_missing).map(|end| alarm_for(end, at))?;
        Some(Event::HoldsLapsed { until: at, quantity: 0, alarm_at: Some(alarm_at) })
    }

    /// Returns holds that have ended: at least `units`, if there are that many, and the hold `name` if it is among
    /// them.
    fn lapsed(&self, units: u64, name: Option<&Fingerprint>, at: TimeMs) -> Option<Lapsed> {
        let needed = name.and_then(|name| self.find(name)?.until);
        let (mut until, mut quantity, mut count, mut next) = (None, 0, 0, None);
        for (end, name) in &self.ends {
            let is_enough = count >= MAX_AT_ONCE && quantity >= units && needed.is_none_or(|needed| *end > needed);
            if *end > at || is_enough && until != Some(*end) {
                next = Some(*end);
                break;
            }
            quantity += self.by_name.get(name).map_or(0, |hold| u64::from(hold.quantity));
            count += 1;
            until = Some(*end);
        }
        let alarm_at = next.map(|end| alarm_for(end, at));
        until.map(|until| Lapsed { until, quantity, next, alarm_at })
    }

    /// Returns the alarm that a new hold until `until` requires, after `lapsed` has been returned to the stock.
    pub(super) fn alarm_with(&self, until: TimeMs, at: TimeMs, lapsed: Option<Lapsed>) -> Option<TimeMs> {
        let (told, first) = lapsed.map_or((self.alarm_at, self.first()), |lapsed| (lapsed.alarm_at, lapsed.next));
        match told {
            // The alarm is pending: in the future, or due and not yet handled, since ended holds remain.
            Some(told) if told > at || first.is_some_and(|first| first <= at) => (until < told).then_some(until),
            // There is no alarm, or it fired without effect.
            Some(_) | None => Some(first.map_or(until, |first| first.min(until))),
        }
    }

    pub(super) fn insert(&mut self, name: Fingerprint, hold: Hold) {
        self.remove(&name);
        self.by_name.insert(name, hold.into());
        self.ends.extend(hold.until.map(|until| (until, name)));
    }

    pub(super) fn remove(&mut self, name: &Fingerprint) {
        if let Some(Hold { until: Some(until), .. }) = self.by_name.remove(name).map(Hold::from) {
            self.ends.remove(&(until, *name));
        }
    }

    pub(super) fn remove_until(&mut self, until: TimeMs) {
        while self.first().is_some_and(|end| end <= until) {
            if let Some((_, name)) = self.ends.pop_first() {
                self.by_name.remove(&name);
            }
        }
    }

    pub(super) fn set_alarm(&mut self, alarm_at: Option<TimeMs>) {
        self.alarm_at = alarm_at;
    }

    fn find(&self, name: &Fingerprint) -> Option<Hold> {
        self.by_name.get(name).copied().map(Hold::from)
    }

    fn first(&self) -> Option<TimeMs> {
        self.ends.first().map(|(end, _)| *end)
    }
}

impl From<Lapsed> for Event {
    fn from(Lapsed { until, quantity, alarm_at, .. }: Lapsed) -> Self {
        Self::HoldsLapsed { until, quantity, alarm_at }
    }
}

/// Returns the alarm for a hold that ends at `end`. A hold that has already ended needs no minimum delay.
fn alarm_for(end: TimeMs, at: TimeMs) -> TimeMs {
    if end <= at { end } else { end.max(TimeMs(at.0.saturating_add(ALARM_EVERY_MS))) }
}

#[cfg(test)]
mod tests;
