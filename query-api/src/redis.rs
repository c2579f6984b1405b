//! The views in Redis, and the task that follows how far they are.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chassis::env::Secret;
use chassis::readiness::Condition;
use chassis::shutdown::Shutdown;
use futures_util::StreamExt as _;
use redis::aio::ConnectionManager;
use redis::{Client, RedisError, Script};
use schemas::cache::{
    ABSENT, ABSENT_TTL_SECS, END, FILL, Head, Keys, Making, News, ROW_TTL_SECS, SUM_TTL_SECS, Shown, partition_of_sum,
    value,
};
use schemas::feeds::{FeedId, StoredView};
use schemas::token::{LogId, Token};
use schemas::views::Source;

use crate::gate::{Busy, Gate};
use crate::positions::{Makings, Positions, Scope, covers, token_text};
use crate::reads::Row;

/// Between looks at Redis without news: it notices a subscription that died silently.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
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
    client: Client,
    connection: ConnectionManager,
    reads: Arc<Gate>,
    fills: Arc<Gate>,
    keys: Arc<Keys>,
    fill: Arc<Script>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("Redis has too much to do")]
    Busy(#[from] Busy),
    #[error("Redis did not do what was asked")]
    Call(#[from] RedisError),
    #[error("Redis did not answer in time")]
    Silent,
    #[error("Redis ended the subscription")]
    Unsubscribed,
    #[error("a request doubted what is known of Redis")]
    Doubted,
}

/// Where Redis has the row of a key, if it has it.
#[derive(Debug, Clone, Copy)]
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

/// What an answer shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shows {
    /// The partition of its aggregate, up to and with the offset.
    One(u32, i64),
    /// Each partition.
    All(Arc<[i64]>),
}

impl Shows {
    /// Tells whether it shows what a token names of the partitions that matter to it.
    pub(crate) fn covers(&self, token: &Token) -> bool {
        match self {
            Self::One(partition, offset) => token.positions.get(partition).is_none_or(|wanted| wanted <= offset),
            Self::All(offsets) => covers(offsets, token),
        }
    }

    pub(crate) fn token(&self, log: LogId) -> Option<String> {
        match self {
            Self::One(_, offset) if *offset < 0 => None,
            Self::One(partition, offset) => Some(format!("{log}.{partition}-{offset}")),
            Self::All(offsets) => token_text(log, offsets, Scope::All),
        }
    }
}

impl Cache {
    pub(crate) fn connect(url: &Secret, prefix: &str, calls: usize) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::open(url.expose())?,
            connection: chassis::redis::connect(url)?,
            reads: Arc::new(Gate::new(calls, MAX_QUEUE, TURN_WITHIN)),
            fills: Arc::new(Gate::new(MAX_FILLS, 0, Duration::ZERO)),
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

    /// Puts what Postgres gave, a row or its absence, unless Redis shows more, or too many do just now. `offsets`: what
    /// Postgres showed of each partition. The place is from before the row was read.
    pub(crate) async fn fill(
        &self,
        (place, key): (&Place, &str),
        row: Option<&Row>,
        offsets: &[i64],
    ) -> Result<(), CacheError> {
        let _turn = self.fills.try_enter()?;
        let (version, body) = row.map_or((ABSENT, &[][..]), |row| (row.version, &row.body));
        let ttl_secs = match (place.is_sum, row) {
            (true, _) => SUM_TTL_SECS,
            (false, None) => ABSENT_TTL_SECS,
            (false, Some(_)) => ROW_TTL_SECS,
        };
        let shown = offsets.get(usize::try_from(place.partition).unwrap_or(usize::MAX)).copied().unwrap_or(-1);
        let (shown, offsets) = if place.is_sum { (String::new(), offsets) } else { (shown.to_string(), &[][..]) };
        let mut call = self.fill.key(self.keys.shown(place.view.name(), place.partition));
        call.key(place.name(&self.keys, key)).key(self.keys.ahead(place.view.name(), place.partition));
        call.arg(place.making.to_string()).arg(shown).arg(ttl_secs);
        call.arg(version).arg(value(version, offsets, body));
        call.invoke_async::<i64>(&mut self.connection.clone()).await?;
        Ok(())
    }

    /// Keeps `positions` at what Redis shows, by its news; while it cannot, they know nothing of Redis.
    pub(crate) async fn follow(self, positions: Arc<Positions>, seen: Condition, shutdown: Shutdown) {
        seen.waiting("Redis was not asked yet");
        let mut is_up = true;
        while !shutdown.is_requested() {
            let error = tokio::select! {
                ended = self.subscribe(&positions, &seen, &mut is_up) => ended,
                () = shutdown.requested() => return,
            };
            positions.lose_cache();
            if !matches!(error, CacheError::Doubted) && std::mem::take(&mut is_up) {
                let error = anyhow::Error::from(error);
                tracing::warn!(error = format!("{error:#}"), "Redis is away: answers come from Postgres");
                // Away at the start is worth waiting for; later, Postgres stands in.
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.requested() => {}
            }
        }
    }

    /// Returns why it ended.
    async fn subscribe(&self, positions: &Positions, seen: &Condition, is_up: &mut bool) -> CacheError {
        match self.try_subscribe(positions, seen, is_up).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_subscribe(
        &self,
        positions: &Positions,
        seen: &Condition,
        is_up: &mut bool,
    ) -> Result<std::convert::Infallible, CacheError> {
        let mut subscription = in_time(self.client.get_async_pubsub()).await?;
        in_time(subscription.subscribe(self.keys.news())).await?;
        let mut news = subscription.into_on_message();
        // Only now: what moves from here on is either in this look or in the news.
        self.look(positions).await?;
        if !std::mem::replace(is_up, true) {
            tracing::info!("Redis is back");
        }
        seen.ready();
        let mut looks = tokio::time::interval_at((Instant::now() + LOOK_EVERY).into(), LOOK_EVERY);
        loop {
            tokio::select! {
                message = news.next() => {
                    let message = message.ok_or(CacheError::Unsubscribed)?;
                    let text: String = message.get_payload()?;
                    let is_known = News::parse(&text).is_some_and(|news| positions.advance_cache(&news));
                    if !is_known {
                        self.look(positions).await?;
                    }
                }
                _ = looks.tick() => self.look(positions).await?,
                () = positions.cache_doubted() => return Err(CacheError::Doubted),
            }
        }
    }

    async fn look(&self, positions: &Positions) -> Result<(), CacheError> {
        let Some(log) = positions.log() else { return Ok(()) };
        let names: Vec<_> = FeedId::names().into_iter().chain([END]).collect();
        let mut pipe = redis::pipe();
        for partition in 0..log.partitions {
            pipe.mget(names.iter().map(|name| self.keys.shown(name, partition)).collect::<Vec<_>>().as_slice());
        }
        let found: Vec<Vec<Option<String>>> = pipe.query_async(&mut self.connection.clone()).await?;
        let (secs, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut self.connection.clone()).await?;
        let clock = (secs * 1000 + micros / 1000, Instant::now());
        let news = (0..).zip(&found).map(|(partition, found)| {
            let values = names.iter().zip(found).filter_map(|(name, value)| Some((*name, value.as_deref()?)));
            News { partition, values: values.collect() }
        });
        positions.know_cache(news, clock);
        Ok(())
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, RedisError>>) -> Result<T, CacheError> {
    Ok(tokio::time::timeout(ANSWER_WITHIN, call).await.map_err(|_| CacheError::Silent)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_one_aggregate_answers_for_its_partition_and_one_of_many_for_all() {
        let log = LogId::of_nonce(1);
        let token = |text: &str| format!("{log}.{text}").parse::<Token>().unwrap();
        let (one, all) = (Shows::One(1, 5), Shows::All([5, -1].into()));
        assert!(one.covers(&token("1-5")) && one.covers(&token("0-9,1-5")) && one.covers(&token("0-9")));
        assert!(!one.covers(&token("1-6")));
        assert!(all.covers(&token("0-5")));
        assert!(!all.covers(&token("0-6")) && !all.covers(&token("0-5,1-0")));
        let texts = [one, all, Shows::One(1, -1), Shows::All([-1].into())].map(|shows| shows.token(log));
        assert_eq!(texts, [Some(format!("{log}.1-5")), Some(format!("{log}.0-5")), None, None]);
    }
}
