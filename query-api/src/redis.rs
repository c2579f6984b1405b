//! The views in Redis, and the task that follows how far they are.

use std::collections::HashMap;
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
    ABSENT, ABSENT_TTL_SECS, Keys, PUT_NEWER, ROW_TTL_SECS, WRITE_WITHIN_MS, generation, parse_news, split_value, value,
};
use schemas::feeds::StoredView;

use crate::gate::{Busy, Gate};
use crate::positions::Positions;
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
    put_newer: Arc<Script>,
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

/// What Redis has for a key.
#[derive(Clone)]
pub(crate) enum Hit {
    Row(Row),
    /// Postgres had no such row, and no projector has written one since.
    Absent,
    /// Nothing: Postgres knows.
    Miss,
    /// All that was known of Redis is void.
    OtherIncarnation,
}

impl Cache {
    pub(crate) fn connect(url: &Secret, prefix: &str, calls: usize) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::open(url.expose())?,
            connection: chassis::redis::connect(url)?,
            reads: Arc::new(Gate::new(calls, MAX_QUEUE, TURN_WITHIN)),
            fills: Arc::new(Gate::new(MAX_FILLS, 0, Duration::ZERO)),
            keys: Arc::new(Keys::new(prefix)),
            put_newer: Arc::new(Script::new(PUT_NEWER)),
        })
    }

    /// One round trip: the row, and whether its incarnation is still the live one.
    pub(crate) async fn row(&self, incarnation: &str, view: StoredView, key: &str) -> Result<Hit, CacheError> {
        let _place = self.reads.enter().await?;
        let mut connection = self.connection.clone();
        let (live, value): (Option<Vec<u8>>, Option<Vec<u8>>) = redis::cmd("MGET")
            .arg(self.keys.live())
            .arg(self.keys.row(incarnation, view, key))
            .query_async(&mut connection)
            .await?;
        if live.as_deref() != Some(incarnation.as_bytes()) {
            return Ok(Hit::OtherIncarnation);
        }
        let row = value.and_then(|value| {
            let (version, body) = split_value(&value)?;
            let generation = generation(incarnation, view)?;
            Some(Row { version, generation, body: Bytes::from(value).slice(body..) })
        });
        Ok(match row {
            Some(row) if row.version == ABSENT => Hit::Absent,
            Some(row) => Hit::Row(row),
            None => Hit::Miss,
        })
    }

    /// Puts what Postgres gave, a row or its absence, unless Redis has a newer one, or it is too late to be sure of
    /// that, or too many do just now.
    ///
    /// `clock`: Redis's time in ms when ours showed an instant. `read_at`: from before the row was read.
    pub(crate) async fn fill(
        &self,
        incarnation: &str,
        (clock, read_at): ((u64, Instant), Instant),
        view: StoredView,
        key: &str,
        row: Option<&Row>,
    ) -> Result<(), CacheError> {
        let _place = self.fills.try_enter()?;
        let since = read_at.saturating_duration_since(clock.1);
        let begun = clock.0 + u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let (version, body, ttl_secs) =
            row.map_or((ABSENT, &[][..], ABSENT_TTL_SECS), |row| (row.version, &row.body, ROW_TTL_SECS));
        let mut call = self.put_newer.key(self.keys.row(incarnation, view, key));
        call.arg(begun + WRITE_WITHIN_MS).arg(ttl_secs).arg(begun).arg(version).arg(value(version, body));
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
        in_time(subscription.subscribe(self.keys.applied())).await?;
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
                    let is_known = parse_news(&text)
                        .is_some_and(|(incarnation, applied)| positions.advance_cache(incarnation, applied));
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
        let mut connection = self.connection.clone();
        let mut pipe = redis::pipe();
        pipe.atomic().get(self.keys.live()).hgetall(self.keys.applied()).cmd("TIME");
        let (live, applied, time): (Option<String>, HashMap<String, i64>, (u64, u64)) =
            pipe.query_async(&mut connection).await?;
        match live {
            Some(live) => positions.know_cache(&live, &applied, (time.0 * 1000 + time.1 / 1000, Instant::now())),
            None => positions.lose_cache(),
        }
        Ok(())
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, RedisError>>) -> Result<T, CacheError> {
    Ok(tokio::time::timeout(ANSWER_WITHIN, call).await.map_err(|_| CacheError::Silent)??)
}
