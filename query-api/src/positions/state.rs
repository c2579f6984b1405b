//! Known positions of both places at one moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::feeds::FeedId;
use schemas::token::Token;

use super::cached::Cached;
use super::ends::{PastEnds, Written};
use super::offsets::token_text;
use super::waiters::{At, Position};
use super::{Log, NOTHING, Offsets, Place, Places, Scope, covers, to_index};

/// Time that Redis has to show the records that Postgres shows. A lag is noticed after this time at the earliest and
/// twice this time at the latest.
pub(super) const SHOWN_WITHIN: Duration = Duration::from_secs(1);

/// Positions of Redis and Postgres.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) log: Option<Log>,
    pub(super) store: Option<Offsets>,
    /// The offsets that Postgres showed at the instant; they become the next floor.
    recent: Option<(Instant, Offsets)>,
    /// Offsets that Postgres showed a moment ago. Positions of Redis below them are not used: Redis is readable, but
    /// the projectors cannot write to it.
    pub(super) floor: Option<Offsets>,
    pub(super) cache: Option<Cached>,
    pub(super) ends: Option<PastEnds>,
}

impl State {
    pub(super) fn raise_floor(&mut self, now: Instant) {
        let Self { store: Some(store), recent, floor, cache, .. } = self else { return };
        if recent.as_ref().is_some_and(|(at, _)| now.saturating_duration_since(*at) < SHOWN_WITHIN) {
            return;
        }
        let Some((_, offsets)) = recent.replace((now, store.clone())) else { return };
        if let Some(cache) = cache {
            cache.distrust(&offsets);
        }
        *floor = Some(offsets);
    }

    /// Returns whether the log contains the positions in the token of a request that arrived at `arrived`.
    pub(super) fn is_written(&self, token: &Token, arrived: Instant) -> Written {
        self.cache.as_ref().map_or(Written::Unknown, |cache| cache.ends.have(token, arrived, cache.clock))
    }

    pub(super) fn place(&self, feed: FeedId, places: Places, token: &Token) -> Option<Place> {
        let cached = (places == Places::Any).then(|| self.cached(feed, Some(token))).flatten();
        let stored = || self.store.as_ref().is_some_and(|store| covers(store.of(feed), token));
        cached.or_else(|| stored().then_some(Place::Store))
    }

    pub(super) fn cached(&self, feed: FeedId, token: Option<&Token>) -> Option<Place> {
        let (cache, offsets) = (self.cache.as_ref()?, self.in_cache(feed)?);
        if !token.is_none_or(|token| covers(offsets, token)) {
            return None;
        }
        Some(Place::Cache { makings: cache.makings[feed].clone(), offsets: offsets.clone() })
    }

    /// Returns the offsets that Redis shows of a feed. Rows that readers put there follow the offsets of Postgres.
    pub(super) fn in_cache(&self, feed: FeedId) -> Option<&Arc<[i64]>> {
        let cache = self.cache.as_ref()?;
        let offsets = if feed.has_rows_in_redis() { &cache.offsets } else { self.store.as_ref()? };
        Some(&offsets.0[feed])
    }

    /// Returns, for each place, a position that it must reach before it can show the token.
    pub(super) fn missing(&self, feed: FeedId, places: Places, token: &Token) -> Vec<Position> {
        let of_place = |at, offsets: Option<&[i64]>| {
            let offsets = offsets.unwrap_or_default();
            let is_missing = |(partition, offset): &(&u32, &i64)| {
                offsets.get(to_index(**partition)).is_none_or(|shown| shown < *offset)
            };
            let missing = token.positions.iter().find(is_missing);
            let (partition, offset) = missing.expect("the place does not show the token yet");
            (at, feed, *partition, *offset)
        };
        let stored = of_place(At::Store, self.store.as_ref().map(|store| store.of(feed)));
        match places {
            Places::Any if feed.has_rows_in_redis() => {
                vec![of_place(At::Cache, self.in_cache(feed).map(|offsets| &**offsets)), stored]
            }
            Places::Any | Places::StoreAlone => vec![stored],
        }
    }

    /// Returns the larger offset of the two places, by partition.
    pub(super) fn furthest(&self, feed: FeedId) -> Option<Vec<i64>> {
        let (store, cache) =
            (self.store.as_ref().map(|store| store.of(feed).to_vec()), self.in_cache(feed).map(|cache| cache.to_vec()));
        match (store, cache) {
            (Some(store), Some(cache)) => Some(store.into_iter().zip(cache).map(|(a, b)| a.max(b)).collect()),
            (store, cache) => store.or(cache),
        }
    }

    /// Returns the furthest offsets of `places` in the partitions that the token names, as a token.
    pub(super) fn reached_of(&self, feed: FeedId, places: Places, token: &Token) -> Option<String> {
        let mut offsets = vec![NOTHING; to_index(self.log?.partitions)];
        let cached = self.in_cache(feed).filter(|_| places == Places::Any).map(|offsets| &**offsets);
        for place in [self.store.as_ref().map(|store| store.of(feed)), cached].into_iter().flatten() {
            for partition in token.positions.keys().map(|partition| to_index(*partition)) {
                offsets[partition] = offsets[partition].max(place[partition]);
            }
        }
        token_text(self.log?.id, &offsets, Scope::All)
    }
}
