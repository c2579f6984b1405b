//! Which keys took effect lately, so that a retry is answered and not executed.
//!
//! Invariant: a key is entered when its command is decided, before anything is acknowledged: a retry that comes
//! while the first try is in flight joins it.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use domain::TimeMs;
use hashbrown::{HashMap, HashSet};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::idempotency::{IdempotencyKey, time_of};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

use super::ParsedRequest;

/// A key made by a clock that runs ahead is kept as much longer.
const MAX_KEY_LEAD: Duration = Duration::from_secs(120);
/// What came within this time stays in memory, wherever else it is kept: a retry usually comes sooner.
const REMEMBERED_MS: u64 = 10_000;

/// How an accepted command was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    pub offset: i64,
    pub fingerprint: u64,
    pub version: u64,
    pub events: Box<[&'static str]>,
}

impl Repeat {
    pub(super) fn accepted(&self, partition: u32) -> Answer {
        Answer::Accepted {
            version: self.version,
            events: self.events.iter().map(|name| (*name).into()).collect(),
            position: (partition, self.offset),
            replayed: false,
            order: None,
        }
    }

    /// To a command under the same key.
    pub(super) fn answer(&self, partition: u32, fingerprint: u64) -> Answer {
        if self.fingerprint != fingerprint {
            return Answer::KeyReused;
        }
        match self.accepted(partition) {
            Answer::Accepted { version, events, position, order, .. } => {
                Answer::Accepted { version, events, position, replayed: true, order }
            }
            other => other,
        }
    }
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Repeats {
    /// By a keyed hash of aggregate and key, 128 bits wide: nobody outside can make two of them meet.
    by_key: HashMap<u128, Repeat>,
    hasher: SipHasher13,
    /// In the order of entry.
    entries: VecDeque<Entry>,
    window_ms: u64,
    /// Keys that told a time up to this may have been forgotten here; `None`: none was.
    forgotten: Option<TimeMs>,
    /// They stand before this offset.
    floor: i64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u128,
    /// Of the command.
    at: TimeMs,
    /// That the key told.
    made: Option<TimeMs>,
}

impl Repeats {
    pub(super) fn new(window: Duration) -> Self {
        let seed = RandomState::new();
        let window = window + MAX_KEY_LEAD;
        Self {
            by_key: HashMap::new(),
            hasher: SipHasher13::new_with_keys(seed.hash_one(0), seed.hash_one(1)),
            entries: VecDeque::new(),
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
            forgotten: None,
            floor: 0,
        }
    }

    pub(super) fn floor(&self) -> i64 {
        self.floor
    }

    pub(super) fn get(&self, aggregate: &AggregateId, key: &str) -> Option<&Repeat> {
        self.by_key.get(&self.hash(aggregate, key))
    }

    /// Of a command that may be one.
    pub(super) fn of<R>(&self, request: &ParsedRequest<R>) -> Option<&Repeat> {
        self.get(&request.aggregate, request.remembered_key()?.as_str())
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether the key may have taken effect though it is not here. One that tells no time always may, once anything
    /// was forgotten.
    pub(super) fn may_have_forgotten(&self, key: &IdempotencyKey) -> bool {
        self.forgotten.is_some_and(|forgotten| key.time().is_none_or(|made| made <= forgotten))
    }

    pub(super) fn insert(&mut self, aggregate: &AggregateId, key: &str, at: TimeMs, repeat: Repeat) {
        let hash = self.hash(aggregate, key);
        self.by_key.insert(hash, repeat);
        self.entries.push_back(Entry { hash, at, made: time_of(key) });
    }

    pub(super) fn expire(&mut self, now: TimeMs) {
        while let Some(over) = self.entries.pop_front_if(|entry| entry.at.0.saturating_add(self.window_ms) < now.0) {
            self.by_key.remove(&over.hash);
        }
    }

    /// Lets go of what is kept outside up to the checkpoint, until `keys` are left. What came lately, or tells a later
    /// time, stays: so a fresh key need not be asked for. So do keys that somebody waits with: it was looked already
    /// whether they took effect.
    pub(super) fn forget<'a>(
        &mut self,
        checkpoint: i64,
        keys: usize,
        waiting: impl Iterator<Item = (&'a AggregateId, &'a str)>,
        now: TimeMs,
    ) {
        if self.by_key.len() <= keys {
            return;
        }
        let waiting: HashSet<u128> = waiting.map(|(aggregate, key)| self.hash(aggregate, key)).collect();
        let until = TimeMs(now.0.saturating_sub(REMEMBERED_MS));
        let mut forgotten = false;
        for _ in 0..self.entries.len() {
            if self.by_key.len() <= keys {
                break;
            }
            // Where the log is ahead of the time, it does not tell what came lately.
            let is_over = |entry: &mut Entry| entry.at <= until || entry.at > now;
            let Some(entry) = self.entries.pop_front_if(is_over) else { break };
            match self.by_key.get(&entry.hash) {
                None => {}
                Some(repeat) if repeat.offset >= checkpoint => {
                    // Everything behind it is, too.
                    self.entries.push_front(entry);
                    break;
                }
                Some(_) if waiting.contains(&entry.hash) || entry.made.is_some_and(|made| made > until) => {
                    self.entries.push_back(entry);
                }
                Some(repeat) => {
                    self.floor = self.floor.max(repeat.offset + 1);
                    self.by_key.remove(&entry.hash);
                    forgotten = true;
                }
            }
        }
        if forgotten {
            self.forgotten = self.forgotten.max(Some(until));
        }
    }

    /// Empty. `forgotten`: keys of commits that will not be read tell a time up to this.
    pub(super) fn restart(&mut self, forgotten: Option<TimeMs>) {
        self.by_key = HashMap::new();
        self.entries = VecDeque::new();
        self.forgotten = forgotten;
        self.floor = 0;
    }

    pub(super) fn move_positions(&mut self, proven: i64, shift: i64) {
        for repeat in self.by_key.values_mut().filter(|repeat| repeat.offset > proven) {
            repeat.offset += shift;
        }
    }

    fn hash(&self, aggregate: &AggregateId, key: &str) -> u128 {
        let mut hasher = self.hasher;
        hasher.write(aggregate.as_str().as_bytes());
        // No name of an aggregate has this byte, so no two pairs run together.
        hasher.write_u8(0);
        hasher.write(key.as_bytes());
        hasher.finish128().as_u128()
    }
}
