//! Reads of the views from Redis, and the task that tracks their positions there.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chassis::readiness::Condition;
use chassis::redis::{Connection, Pipelines, RESPONSE_TIMEOUT, RedisSettings, Subscriber};
use chassis::shutdown::Shutdown;
use futures_util::StreamExt as _;
use redis::aio::PubSubStream;
use redis::{RedisError, Script};
use schemas::cache::{
    ABSENT, ABSENT_TTL_SECS, END, FILL, Head, Keys, Making, News, ROW_TTL_SECS, SUM_TTL_SECS, Shown, partition_of_sum,
    value,
};
use schemas::feeds::{FeedId, StoredView};
use schemas::views::Source;

use crate::limiter::{Busy, Limiter};
use crate::positions::{Makings, Positions, RedisClock, Scope, Shows};
use crate::row::{Hit, Row};

/// Interval between full reads of the positions, which detect a subscription that died silently.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Number of attempts to read Redis's clock in a full read.
const CLOCK_TRIES: u32 = 3;
/// Maximum time that a read waits for a permit.
const TURN_WITHIN: Duration = Duration::from_secs(2);
/// Maximum number of queued reads: one for each connection that the server accepts.
const MAX_QUEUE: usize = chassis::http::MAX_CONNECTIONS;
/// Maximum number of concurrent fills, separate from the reads: each fill saves many loads.
const MAX_FILLS: usize = 256;
const RETRY: Duration = Duration::from_millis(100);

/// Client of the views in Redis. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cache {
    connection: Connection,
    subscriber: Subscriber,
    reads: Arc<Limiter>,
    fills: Arc<Limiter>,
    keys: Arc<Keys>,
    fill: Arc<Script>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("Redis is overloaded")]
    Busy(#[from] Busy),
    #[error("Redis command failed")]
    Call(#[from] RedisError),
    #[error("Redis closed the subscription")]
    Unsubscribed,
    #[error("a request failed, so the known positions are in doubt")]
    Doubted,
}

/// Place of a row in Redis: determines its key, whether or not Redis has the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) view: StoredView,
    pub(crate) partition: u32,
    /// The making that Redis shows of the view in that partition.
    pub(crate) making: Making,
    /// Revision of that partition, or the sum over all partitions for a row that many aggregates feed.
    pub(crate) revision: i64,
    pub(crate) is_sum: bool,
}

impl Place {
    /// Returns the place of a row, or `None` if Redis does not show its partition or, for a row that many aggregates
    /// feed, any one of the partitions.
    pub(crate) fn of(makings: &Makings, view: StoredView, key: &str, scope: Scope) -> Option<Self> {
        let is_sum = matches!(view.view().source, Source::Sum(_));
        let partition = match scope {
            Scope::One(partition) => partition,
            Scope::All => partition_of_sum(key, u32::try_from(makings.len()).ok()?),
        };
        let making = (*makings.get(usize::try_from(partition).ok()?)?)?;
        let revision = if is_sum {
            makings.iter().map(|making| Some(i64::from((*making)?.revision))).sum::<Option<_>>()?
        } else {
            i64::from(making.revision)
        };
        Some(Self { view, partition, making, revision, is_sum })
    }

    fn name(&self, keys: &Keys, key: &str) -> String {
        let Self { view, partition, making, revision, is_sum } = *self;
        match is_sum {
            true => keys.sum(partition, making.generation, revision, view, key),
            false => keys.row(partition, making.incarnation, view, key),
        }
    }
}

impl Cache {
    pub(crate) fn connect(redis: &RedisSettings, prefix: &str, calls: usize) -> anyhow::Result<Self> {
        Ok(Self {
            connection: chassis::redis::connect(redis)?,
            subscriber: Subscriber::new(redis)?,
            reads: Arc::new(Limiter::new(calls, MAX_QUEUE, TURN_WITHIN)),
            fills: Arc::new(Limiter::new(MAX_FILLS, 0, Duration::ZERO)),
            keys: Arc::new(Keys::new(prefix)),
            fill: Arc::new(Script::new(FILL)),
        })
    }

    /// Reads the row and the position that covers it in one round trip.
    pub(crate) async fn row(&self, place: &Place, key: &str) -> Result<Hit, CacheError> {
        let _turn = self.reads.enter().await?;
        let position = self.keys.shown(place.view.name(), place.partition);
        let (shown, value): (Option<String>, Option<Vec<u8>>) = redis::cmd("MGET")
            .arg(position)
            .arg(place.name(&self.keys, key))
            .query_async(&mut self.connection.clone())
            .await?;
        let shown = shown.as_deref().and_then(Shown::parse);
        let Some(shown) = shown.filter(|shown| shown.making == place.making) else { return Ok(Hit::Elsewhere(shown)) };
        let Some((head, value)) = value.and_then(|value| Some((Head::of(&value)?, value))) else {
            return Ok(Hit::Miss);
        };
        let shows = match place.is_sum {
            true => Shows::All(head.offsets.into()),
            false => Shows::One(place.partition, shown.offset),
        };
        let row = (head.version != ABSENT).then(|| Row {
            version: head.version,
            generation: place.making.generation,
            body: Bytes::from(value).slice(head.len..),
        });
        Ok(Hit::Found(row, shows))
    }

    /// Writes a result from Postgres, a row or its absence, unless Redis shows a later position or too many fills are
    /// in flight. The place must have been determined before the row was read.
    pub(crate) async fn fill(
        &self,
        place: &Place,
        key: &str,
        row: Option<&Row>,
        shows: &Shows,
    ) -> Result<(), CacheError> {
        let _turn = self.fills.try_enter()?;
        let (version, body) = row.map_or((ABSENT, &[][..]), |row| (row.version, &row.body));
        let ttl_secs = match (place.is_sum, row) {
            (true, _) => SUM_TTL_SECS,
            (false, None) => ABSENT_TTL_SECS,
            (false, Some(_)) => ROW_TTL_SECS,
        };
        let (shown, offsets) = match shows {
            Shows::One(_, offset) => (offset.to_string(), &[][..]),
            Shows::All(offsets) => (String::new(), &offsets[..]),
        };
        let mut call = self.fill.key(self.keys.shown(place.view.name(), place.partition));
        call.key(place.name(&self.keys, key)).key(self.keys.ahead(place.view.name(), place.partition));
        call.arg(place.making.to_string()).arg(shown).arg(ttl_secs);
        call.arg(version).arg(value(version, offsets, body));
        call.invoke_async::<i64>(&mut self.connection.clone()).await?;
        Ok(())
    }

    /// Returns whether Redis is a cluster, so that some partitions may be available while others are not.
    pub(crate) fn is_cluster(&self) -> bool {
        self.connection.is_cluster()
    }

    /// Keeps `positions` up to date with Redis's notifications. While Redis is unavailable they hold nothing about it.
    pub(crate) async fn follow(mut self, positions: Arc<Positions>, seen: Condition, shutdown: Shutdown) {
        seen.waiting("not connected yet");
        let mut is_up = true;
        while !shutdown.is_requested() {
            let Err(error) = tokio::select! {
                ended = self.subscribe(&positions, &seen, &mut is_up) => ended,
                () = shutdown.requested() => return,
            };
            if !matches!(error, CacheError::Doubted) {
                positions.lose_cache();
                if std::mem::take(&mut is_up) {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(error = format!("{error:#}"), "Redis unavailable; answering from Postgres");
                    // The readiness condition is left as it is: Redis is awaited at startup only, later Postgres takes
                    // over.
                }
            }
            shutdown.sleep(RETRY).await;
        }
    }

    async fn subscribe(
        &mut self,
        positions: &Positions,
        seen: &Condition,
        is_up: &mut bool,
    ) -> Result<Infallible, CacheError> {
        let mut news = self.subscriber.subscribe(&self.keys.news()).await?;
        // Read the positions only after subscribing: every later move is in this read or in a notification.
        self.know(positions, &mut news).await?;
        if !std::mem::replace(is_up, true) {
            tracing::info!("Redis available again");
        }
        seen.ready();
        let mut looks = tokio::time::interval_at((Instant::now() + LOOK_EVERY).into(), LOOK_EVERY);
        loop {
            tokio::select! {
                message = news.next() => {
                    if !take(positions, &text(message)?) {
                        self.know(positions, &mut news).await?;
                    }
                }
                _ = looks.tick() => self.know(positions, &mut news).await?,
                () = positions.cache_doubted() => return Err(CacheError::Doubted),
            }
        }
    }

    /// Reads all positions. Notifications that arrive meanwhile may be older or newer than the values read, so they are
    /// applied at once and again after the read.
    async fn know(&self, positions: &Positions, news: &mut PubSubStream) -> Result<(), CacheError> {
        let Some(log) = positions.log() else { return Ok(()) };
        let names: Vec<_> = FeedId::names().into_iter().chain([END]).collect();
        let (mut look, mut meanwhile) = (pin!(self.look(&names, log.partitions)), Vec::new());
        let (found, clock) = loop {
            tokio::select! {
                found = &mut look => break found?,
                message = news.next() => {
                    let text = text(message)?;
                    take(positions, &text);
                    meanwhile.push(text);
                }
            }
        };
        let all = found.iter().map(|(partition, found)| {
            let values = names.iter().zip(found).filter_map(|(name, value)| Some((*name, value.as_deref()?)));
            News { partition: *partition, values: values.collect() }
        });
        positions.know_cache(all, clock);
        for text in &meanwhile {
            take(positions, text);
        }
        Ok(())
    }

    /// Returns the values under `names` in each partition, and Redis's clock. Partitions of a cluster that do not
    /// answer are omitted.
    async fn look(&self, names: &[&str], partitions: u32) -> Result<(Vec<(u32, Standing)>, RedisClock), CacheError> {
        let mut pipelines = Pipelines::default();
        for partition in 0..partitions {
            let keys: Vec<_> = names.iter().map(|name| self.keys.shown(name, partition)).collect();
            pipelines.of(partition).mget(keys.as_slice());
        }
        let (mut found, mut failed) = (Vec::new(), None);
        for (partition, answers) in pipelines.send::<Standing>(&self.connection, RESPONSE_TIMEOUT).await {
            match answers {
                Ok(answers) => found.push((partition, answers.into_iter().flatten().collect())),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if found.is_empty() => Err(error.into()),
            _ => Ok((found, self.clock().await?)),
        }
    }

    /// Reads Redis's clock. Any node of a cluster may answer, so an unavailable one is retried.
    async fn clock(&self) -> Result<RedisClock, CacheError> {
        let mut tries = CLOCK_TRIES;
        loop {
            match redis::cmd("TIME").query_async::<(u64, u64)>(&mut self.connection.clone()).await {
                Ok((secs, micros)) => {
                    return Ok(RedisClock { ms: secs * 1000 + micros / 1000, read_at: Instant::now() });
                }
                Err(_) if tries > 1 => tries -= 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Values under the keys of one partition.
type Standing = Vec<Option<String>>;

fn text(message: Option<redis::Msg>) -> Result<String, CacheError> {
    Ok(message.ok_or(CacheError::Unsubscribed)?.get_payload()?)
}

/// Applies a notification. Returns `false` if the positions must be read from Redis.
fn take(positions: &Positions, text: &str) -> bool {
    News::parse(text).is_some_and(|news| positions.advance_cache(&news))
}

#[cfg(test)]
mod tests {
    use schemas::token::LogId;

    use super::*;
    use crate::positions::Log;

    fn making(revision: u32) -> Option<Making> {
        Some(Making { incarnation: 1, generation: 1, revision })
    }

    fn place(view: &str, makings: &[Option<Making>], scope: Scope) -> Option<Place> {
        Place::of(&makings.into(), StoredView::named(view).unwrap(), "1997-01-01", scope)
    }

    #[test]
    fn a_row_of_one_aggregate_has_a_place_if_redis_shows_its_partition() {
        let makings = [None, making(4)];
        let shown = place("product", &makings, Scope::One(1)).unwrap();
        assert_eq!((shown.partition, shown.revision, shown.is_sum), (1, 4, false));
        assert_eq!(place("product", &makings, Scope::One(0)), None);
        assert_eq!(place("product", &makings, Scope::One(2)), None, "there is no such partition");
    }

    #[test]
    fn a_row_of_many_aggregates_has_a_place_only_while_redis_shows_all_partitions() {
        let sum = place("revenue", &[making(4), making(3)], Scope::All).unwrap();
        assert_eq!((sum.revision, sum.is_sum), (7, true));
        assert_eq!(place("revenue", &[making(4), None], Scope::All), None);
        assert_eq!(place("revenue", &[None, making(3)], Scope::All), None);
    }

    #[test]
    fn a_notification_that_cannot_be_applied_asks_for_a_full_read() {
        let positions = Positions::default();
        positions.know_log(Log { id: LogId::of_nonce(1), partitions: 1 }, crate::positions::FormerLogs::new());
        let news = "0 product=1.1.0/5";
        assert!(!take(&positions, news), "the positions of Redis are unknown");
        positions.know_cache([], RedisClock { ms: 0, read_at: Instant::now() });
        assert!(take(&positions, news));
        for malformed in ["", "x", "product=1.1.0/5", "0 product"] {
            assert!(!take(&positions, malformed), "{malformed:?}");
        }
    }
}
