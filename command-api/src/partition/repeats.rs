//! Idempotency keys that took effect recently, so that a retry is answered and not executed again.
//!
//! Invariant: a key is entered when its command is decided, before anything is acknowledged: a retry that arrives while
//! the first attempt is in flight joins it.

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

/// Extra retention for keys whose timestamps come from a clock that runs ahead.
const MAX_KEY_LEAD: Duration = Duration::from_secs(120);
/// Time for which a key stays in memory even if the store has it, in milliseconds: most retries arrive sooner.
const REMEMBERED_MS: u64 = 10_000;

/// Outcome of an accepted command, for the answer to a retry.
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

    /// Returns the answer to another command under the same key.
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
    /// Outcomes by a keyed 128-bit hash of aggregate and key, so that clients cannot construct a collision.
    by_key: HashMap<u128, Repeat>,
    hasher: SipHasher13,
    /// Keys in insertion order.
    entries: VecDeque<Entry>,
    window_ms: u64,
    /// Latest timestamp of keys that may have been evicted; `None` if none was.
    forgotten: Option<TimeMs>,
    /// Offset before which all evicted keys took effect.
    floor: i64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u128,
    /// Time of the command.
    at: TimeMs,
    /// Timestamp in the key, if it has one.
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

    /// Returns the earlier outcome if `request` repeats a command.
    pub(super) fn of<R>(&self, request: &ParsedRequest<R>) -> Option<&Repeat> {
        self.get(&request.aggregate, request.remembered_key()?.as_str())
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Returns whether the key may have taken effect although it is not in memory. Once any key was evicted, this is
    /// always true of a key without a timestamp.
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

    /// Evicts keys that the store has as of the checkpoint, until `keys` are left. A key stays if it arrived recently
    /// or has a recent timestamp, so that fresh keys need no lookup. So does the key of a waiting command, because it
    /// has already been looked up.
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
            // An entry that is ahead of the clock does not show when it arrived.
            let is_over = |entry: &mut Entry| entry.at <= until || entry.at > now;
            let Some(entry) = self.entries.pop_front_if(is_over) else { break };
            match self.by_key.get(&entry.hash) {
                None => {}
                Some(repeat) if repeat.offset >= checkpoint => {
                    // All entries behind it are past the checkpoint too.
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

    /// Discards all keys. `forgotten` is the latest timestamp of keys in commits that will not be read.
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
        // No aggregate name contains this byte, so two different pairs never hash the same bytes.
        hasher.write_u8(0);
        hasher.write(key.as_bytes());
        hasher.finish128().as_u128()
    }
}
