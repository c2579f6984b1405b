//! The views in Redis, and the task that follows how far they are.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chassis::env::Secret;
use chassis::readiness::Condition;
use chassis::redis::{Connection, Pipelines, RESPONSE_TIMEOUT, Subscriber};
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
use crate::positions::{Makings, Positions, Scope, Shows};
use crate::reads::Row;

/// Between looks at Redis without news: it notices a subscription that died silently.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often Redis's clock is asked for at a look.
const CLOCK_TRIES: u32 = 3;
/// For a turn to ask, where many do.
const TURN_WITHIN: Duration = Duration::from_secs(2);
/// That wait for their turn: one for each connection that the server takes.
const MAX_QUEUE: usize = chassis::http::MAX_CONNECTIONS;
/// Under way at a time, apart from the reads: each spares many of them.
const MAX_FILLS: usize = 256;
const RETRY: Duration = Duration::from_millis(100);

/// Cheap to clone.
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
    #[error("Redis has too much to do")]
    Busy(#[from] Busy),
    #[error("Redis did not do what was asked")]
    Call(#[from] RedisError),
    #[error("Redis ended the subscription")]
    Unsubscribed,
    #[error("a request doubted what is known of Redis")]
    Doubted,
}

/// Where Redis has the row of a key, if it has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) view: StoredView,
    pub(crate) partition: u32,
    /// Of the view in that partition.
    pub(crate) making: Making,
    /// Of that partition, or of all, added up, for a row that many aggregates feed.
    pub(crate) revision: i64,
    pub(crate) is_sum: bool,
}

impl Place {
    /// `None`: Redis shows nothing of its partition; of a row that many aggregates feed, of any.
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
            true => keys.sum(partition, (making.generation, revision), view, key),
            false => keys.row(partition, making.incarnation, view, key),
        }
    }
}

/// What Redis has for a key.
#[derive(Clone)]
pub(crate) enum Hit {
    /// `None`: Postgres had no such row, and no projector has written one since.
    Found(Option<Row>, Shows),
    /// Nothing: Postgres knows.
    Miss,
    /// This stands in the position's place; `None`: nothing that this build understands.
    Elsewhere(Option<Shown>),
}

impl Cache {
    pub(crate) fn connect(url: &Secret, prefix: &str, calls: usize) -> anyhow::Result<Self> {
        Ok(Self {
            connection: chassis::redis::connect(url)?,
            subscriber: Subscriber::new(url)?,
            reads: Arc::new(Limiter::new(calls, MAX_QUEUE, TURN_WITHIN)),
            fills: Arc::new(Limiter::new(MAX_FILLS, 0, Duration::ZERO)),
            keys: Arc::new(Keys::new(prefix)),
            fill: Arc::new(Script::new(FILL)),
        })
    }

    /// One round trip: the row, and the position that covers it.
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

    /// Puts what Postgres gave, a row or its absence, unless Redis shows more, or too many do just now. The place is from
    /// before the row was read.
    pub(crate) async fn fill(
        &self,
        (place, key): (&Place, &str),
        (row, shows): (Option<&Row>, &Shows),
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

    /// Tells whether Redis may have some partitions while others are away.
    pub(crate) fn is_cluster(&self) -> bool {
        self.connection.is_cluster()
    }

    /// Keeps `positions` at what Redis shows, by its news; while it cannot, they know nothing of Redis.
    pub(crate) async fn follow(mut self, positions: Arc<Positions>, seen: Condition, shutdown: Shutdown) {
        seen.waiting("Redis was not asked yet");
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
                    tracing::warn!(error = format!("{error:#}"), "Redis is away: answers come from Postgres");
                    // Away at the start is worth waiting for; later, Postgres stands in.
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.requested() => {}
            }
        }
    }

    async fn subscribe(
        &mut self,
        positions: &Positions,
        seen: &Condition,
        is_up: &mut bool,
    ) -> Result<Infallible, CacheError> {
        let mut news = self.subscriber.subscribe(&self.keys.news()).await?;
        // Only now: what moves from here on is either in this look or in the news.
        self.know(positions, &mut news).await?;
        if !std::mem::replace(is_up, true) {
            tracing::info!("Redis is back");
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

    /// Takes in all that Redis shows. News go on beside the look, which may have come before or after them: they are taken
    /// once more behind it.
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

    /// Returns what stands under the names in each partition, and Redis's clock. Of a partition of a cluster that does not
    /// answer nothing is known.
    async fn look(
        &self,
        names: &[&str],
        partitions: u32,
    ) -> Result<(Vec<(u32, Standing)>, (u64, Instant)), CacheError> {
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

    /// Returns Redis's time in ms since 1970, and when that was. Any node of a cluster is asked; one may be away.
    async fn clock(&self) -> Result<(u64, Instant), CacheError> {
        let mut tries = CLOCK_TRIES;
        loop {
            match redis::cmd("TIME").query_async::<(u64, u64)>(&mut self.connection.clone()).await {
                Ok((secs, micros)) => return Ok((secs * 1000 + micros / 1000, Instant::now())),
                Err(_) if tries > 1 => tries -= 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What stands under names.
type Standing = Vec<Option<String>>;

fn text(message: Option<redis::Msg>) -> Result<String, CacheError> {
    Ok(message.ok_or(CacheError::Unsubscribed)?.get_payload()?)
}

/// Takes news in; `false`: Redis has to be looked at.
fn take(positions: &Positions, text: &str) -> bool {
    News::parse(text).is_some_and(|news| positions.advance_cache(&news))
}
