//! Which keys took effect lately, so that a retry is answered and not executed.
//!
//! Invariant: a key is entered when its command is decided, before anything is acknowledged: a retry that comes
//! while the first try is in flight joins it.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use domain::TimeMs;
use hashbrown::HashMap;
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

/// A key made by a clock that runs ahead is kept as much longer.
const MAX_KEY_LEAD: Duration = Duration::from_secs(120);

/// How an accepted command was answered.
#[derive(Debug, Clone)]
pub(super) struct Repeat {
    pub(super) offset: i64,
    pub(super) fingerprint: u64,
    pub(super) version: u64,
    pub(super) events: Box<[&'static str]>,
}

impl Repeat {
    pub(super) fn accepted(&self, partition: u32) -> Answer {
        Answer::Accepted {
            version: self.version,
            events: self.events.iter().map(|name| (*name).into()).collect(),
            position: (partition, self.offset),
            replayed: false,
        }
    }

    /// To a command under the same key.
    pub(super) fn answer(&self, partition: u32, fingerprint: u64) -> Answer {
        if self.fingerprint != fingerprint {
            return Answer::KeyReused;
        }
        match self.accepted(partition) {
            Answer::Accepted { version, events, position, .. } => {
                Answer::Accepted { version, events, position, replayed: true }
            }
            other => other,
        }
    }
}

#[derive(Debug)]
pub(super) struct Repeats {
    /// By a keyed hash of aggregate and key, 128 bits wide: nobody outside can make two of them meet.
    by_key: HashMap<u128, Repeat>,
    hasher: SipHasher13,
    /// In the order of entry, with the time until which each is kept.
    kept_until: VecDeque<(TimeMs, u128)>,
    window_ms: u64,
}

impl Repeats {
    pub(super) fn new(window: Duration) -> Self {
        let seed = RandomState::new();
        let window = window + MAX_KEY_LEAD;
        Self {
            by_key: HashMap::new(),
            hasher: SipHasher13::new_with_keys(seed.hash_one(0), seed.hash_one(1)),
            kept_until: VecDeque::new(),
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn get(&self, aggregate: &AggregateId, key: &str) -> Option<&Repeat> {
        self.by_key.get(&self.hash(aggregate, key))
    }

    pub(super) fn insert(&mut self, aggregate: &AggregateId, key: &str, at: TimeMs, repeat: Repeat) {
        let hash = self.hash(aggregate, key);
        self.by_key.insert(hash, repeat);
        self.kept_until.push_back((TimeMs(at.0.saturating_add(self.window_ms)), hash));
    }

    pub(super) fn expire(&mut self, now: TimeMs) {
        while let Some((_, hash)) = self.kept_until.pop_front_if(|(until, _)| *until < now) {
            self.by_key.remove(&hash);
        }
    }

    pub(super) fn clear(&mut self) {
        self.by_key = HashMap::new();
        self.kept_until = VecDeque::new();
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
