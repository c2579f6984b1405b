//! The simulated store: it lags behind the log, and is announced, queried and read at any moment.

use domain::{State, TimeMs};
use schemas::idempotency::IdempotencyKey;

use super::{Counted, History, NEW, Pick, World, product};
use crate::partition::tests::{int, unreadable};
use crate::partition::{Checkpoint, LoadRequest, LoadedAggregate, LoadedNames, LoadedState, Repeat, Unavailable};

/// A machine's request for stored data.
pub(super) struct Ask {
    pub(super) machine: usize,
    pub(super) life: u32,
    pub(super) wanted: LoadRequest,
    /// Length of the stored part of the log at the time of the request.
    pub(super) kept: usize,
}

/// A machine's request for names.
pub(super) struct NamesAsk {
    pub(super) machine: usize,
    pub(super) life: u32,
    pub(super) from: i64,
    pub(super) kept: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Reading {
    AtOnce,
    AtLast,
    Failed,
}

impl World {
    /// Advances the store by this many records.
    pub(super) fn keep(&mut self, records: usize) {
        // The writer of the store stops at an unreadable value, like any reader.
        let unread = self.log.iter().skip(self.readable).position(|value| *value == unreadable());
        let readable = unread.map_or(self.log.len(), |unread| self.readable + unread);
        self.kept = readable.min(self.kept.saturating_add(records));
    }

    pub(super) fn tell(&mut self, it: usize) {
        if self.kept > 0 {
            let checkpoint = checkpoint(&History::of(&self.log[..self.kept]));
            let machine = &mut self.machines[it];
            let reading = machine.out.reading;
            machine.partition.checkpointed(checkpoint, &mut machine.out);
            self.seen.begun_anew += usize::from(machine.out.reading != reading);
        }
        self.ask_for_states(it);
    }

    pub(super) fn ask_for_states(&mut self, it: usize) {
        let machine = &mut self.machines[it];
        machine.partition.ask_for_states(&mut machine.out);
        self.end_turn(it);
    }

    /// Evicts as if memory were short. The first pass spares recently used aggregates.
    pub(super) fn evict(&mut self, it: usize) {
        let before = self.machines[it].partition.residents();
        for _ in 0..2 {
            self.machines[it].partition.evict(0);
        }
        self.seen.evicted += before - self.machines[it].partition.residents();
        self.machines[it].partition.evict(usize::MAX);
    }

    /// Evicts keys with timestamps up to `ahead` milliseconds from now.
    pub(super) fn forget(&mut self, it: usize, ahead: u64) {
        let now = TimeMs(self.now(it).0 + 10_000 + ahead);
        let partition = &mut self.machines[it].partition;
        let before = partition.remembered_keys();
        partition.forget(0, now);
        self.seen.forgotten += before - partition.remembered_keys();
    }

    pub(super) fn bring(&mut self, pick: Pick, reading: Reading) {
        let awake: Vec<_> = (0..self.asks.len()).filter(|it| self.is_awake(self.asks[*it].machine)).collect();
        let Some(nth) = pick.checked_rem(awake.len()) else { return };
        let Ask { machine: it, life, wanted, kept } = self.asks.remove(awake[nth]);
        if self.machines[it].life != life {
            return;
        }
        let kept = match reading {
            Reading::AtOnce => Ok(self.read_kept(kept, &wanted)),
            Reading::AtLast => Ok(self.read_kept(self.kept, &wanted)),
            Reading::Failed => Err(Unavailable),
        };
        let found = kept.as_ref().is_ok_and(|kept| kept.repeat.is_some());
        self.seen.repeats_brought += usize::from(found);
        self.seen.brought += usize::from(!found && kept.is_ok());
        self.look_at_clock(it);
        let now = self.now(it);
        let machine = &mut self.machines[it];
        machine.partition.loaded(&wanted, kept, now, &mut machine.out);
        self.end_turn(it);
    }

    /// Delivers the names from at most this many records, plus false positives selected by the mask.
    pub(super) fn name(&mut self, pick: Pick, reading: Reading, records: usize, seeming: u8) {
        let awake: Vec<_> =
            (0..self.names_asks.len()).filter(|it| self.is_awake(self.names_asks[*it].machine)).collect();
        let Some(nth) = pick.checked_rem(awake.len()) else { return };
        let NamesAsk { machine: it, life, from, kept } = self.names_asks[awake[nth]];
        let kept = match reading {
            Reading::AtOnce => kept,
            Reading::AtLast => self.kept,
            Reading::Failed => return,
        };
        let is_alive = self.machines[it].life == life;
        let until = from.saturating_add(int(records.min(self.log.len()))).min(int(kept));
        // The loader retries until more is stored.
        if is_alive && until <= from {
            return;
        }
        self.names_asks.remove(awake[nth]);
        if !is_alive {
            return;
        }
        let history = History::of(&self.log[..kept]);
        let named = history.commits.iter().filter(|commit| (from..until).contains(&commit.offset));
        let seeming = NEW.iter().enumerate().filter(|(bit, _)| seeming >> bit & 1 == 1);
        let seeming = seeming.map(|(_, id)| product(id).as_str().to_owned());
        let names = named.map(|commit| commit.product.clone()).chain(seeming).collect();
        let now = self.now(it);
        let machine = &mut self.machines[it];
        let knew = machine.partition.knows_names();
        machine.partition.named(&LoadedNames { from, until, names }, now, &mut machine.out);
        self.seen.caught_up_with_names += usize::from(!knew && machine.partition.knows_names());
        self.end_turn(it);
    }

    /// Counts how a product's name is judged, before a command on it is sent.
    pub(super) fn look_at_names(&mut self, it: usize, id: &str) {
        let memory = &self.machines[it].partition.memory;
        if memory.floor() > 0 && memory.aggregates.knows_names() {
            let is_new = self.machines[it].partition.memory.aggregates.is_new(&product(id));
            let exists = History::of(&self.log).product(self.log.len(), id).version > 0;
            self.seen.known_as_new += usize::from(is_new);
            self.seen.taken_for_known += usize::from(!is_new && !exists && !memory.aggregates.knows(&product(id)));
        }
    }

    fn read_kept(&self, length: usize, wanted: &LoadRequest) -> LoadedAggregate {
        let history = History::of(&self.log[..length]);
        let of_it = |commit: &&Counted| commit.product == wanted.aggregate.as_str();
        let state = wanted.state.then(|| {
            let super::Product { state, version } = history.product(length, wanted.aggregate.id());
            let offset = history.commits.iter().filter(of_it).map(|commit| commit.offset).max().unwrap_or(0);
            LoadedState { folded: Ok::<State, String>(state), version, offset }
        });
        let repeat = wanted.key.as_ref().and_then(|key| {
            let commit = history.commits.iter().filter(of_it).find(|commit| commit.key == key.as_str())?;
            let events = commit.events.iter().map(|event| schemas::events::WireEvent::newest(event).name()).collect();
            Some(Repeat { offset: commit.offset, fingerprint: commit.wish as u64, version: commit.version, events })
        });
        assert_eq!(product(wanted.aggregate.id()), wanted.aggregate);
        LoadedAggregate { checkpoint: int(length), state, repeat }
    }
}

fn checkpoint(history: &History) -> Checkpoint {
    let time = |commit: &Counted| IdempotencyKey::from_bare(&commit.key).unwrap().time();
    Checkpoint {
        reader: history.reader,
        last_at: TimeMs(history.commits.iter().map(|commit| commit.at).max().unwrap_or(0)),
        max_key: history.commits.iter().filter_map(time).max().unwrap_or(TimeMs(0)),
    }
}
