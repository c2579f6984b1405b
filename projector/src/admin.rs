//! Admin endpoints for parked records: operators list, retry and discard them. Any projector can serve them.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use chassis::border;
use chassis::postgres::PostgresSettings;
use chassis::redis::RedisSettings;
use chassis::telemetry::with_causes;
use schemas::feeds::{FeedId, StoredView};
use schemas::time::{TimeMs, to_rfc3339};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::Config;
use crate::parked::{DEADLINES, ParkedAt, REACTOR};
use crate::postgres::parked::ListedAt;
use crate::postgres::{Store, StoreError, Target};
use crate::reactor::retries::{Again, again};
use crate::reactor::{PartitionQueues, WeakQueues};
use crate::redis::{await_revision, declare_stale};
use crate::share::Place;

const SHOW_TRIES: u32 = 5;
const SHOW_RETRY: Duration = Duration::from_millis(300);
/// Time that the partition's projector gets to show revised rows in Redis.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
/// Maximum number of aggregates in one list.
const MAX_LISTED: i64 = 1000;
/// Maximum number of records that are retried at once.
const MAX_TRIED: i64 = 500;
/// Time limit of a request that retries all parked records. The reactors retry the rest.
const TRIED_WITHIN: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Servers {
    postgres: PostgresSettings,
    redis: RedisSettings,
    redis_prefix: String,
    /// Set if this process reacts to events.
    queues: Arc<OnceLock<WeakQueues>>,
    payment_window: Duration,
}

/// Serves `GET /parked`, `POST /parked/{view}/{type}/{id}/retry` and `…/discard`, and
/// `POST /parked/{reactor|deadlines}/retry`. `queues` is set if this process reacts to events.
pub(crate) fn routes(config: &Config, queues: Arc<OnceLock<WeakQueues>>) -> Router {
    let Config { postgres, redis, redis_prefix, payment_window, .. } = config.clone();
    Router::new()
        .route("/parked", get(list))
        .route("/parked/{view}/retry", post(retry_all))
        .route("/parked/{view}/{type}/{id}/retry", post(retry))
        .route("/parked/{view}/{type}/{id}/discard", post(discard))
        .with_state(Servers { postgres, redis, redis_prefix, queues, payment_window })
}

#[derive(Deserialize)]
struct Page {
    /// Cursor: the previous page's `next`.
    after: Option<String>,
}

/// Lists parked aggregates, the oldest first, with `next` if there may be more.
async fn list(State(servers): State<Servers>, Query(page): Query<Page>) -> Result<Json<Value>, Response> {
    let after = page.after.as_deref().map_or(Some(ListedAt::START), place);
    let after =
        after.ok_or_else(|| border::plain(StatusCode::BAD_REQUEST, "after: expected the `next` of a previous page"))?;
    let parked = servers.store().await?.list_parked(after, MAX_LISTED).await.map_err(|error| failed(&error))?;
    let is_full = i64::try_from(parked.len()).unwrap_or(i64::MAX) >= MAX_LISTED;
    let next = parked.last().filter(|_| is_full);
    let next = next.map(|last| format!("{}/{}/{}", last.since_us, last.view, last.aggregate));
    let entries: Vec<_> = parked
        .into_iter()
        .map(|parked| {
            json!({
                "view": parked.view,
                "aggregate": parked.aggregate,
                "records": parked.records,
                "first_version": parked.first_version,
                "reason": parked.reason,
                "since": to_rfc3339(TimeMs((parked.since_us / 1000).cast_unsigned())),
            })
        })
        .collect();
    let mut list = json!({ "parked": entries });
    if let Some(next) = next {
        list["next"] = next.into();
    }
    Ok(Json(list))
}

/// Parses a cursor.
fn place(after: &str) -> Option<ListedAt<'_>> {
    let mut parts = after.splitn(3, '/');
    Some(ListedAt { since_us: parts.next()?.parse().ok()?, view: parts.next()?, aggregate: parts.next()? })
}

async fn retry_all(State(servers): State<Servers>, Path(view): Path<String>) -> Result<Json<Value>, Response> {
    match view.as_str() {
        REACTOR => servers.react_again_to_all().await,
        DEADLINES => {
            let due = servers.store().await?.fire_all_again().await.map_err(|error| failed(&error))?;
            Ok(Json(json!({ "due": due })))
        }
        _ => Err(not_parked()),
    }
}

async fn retry(
    State(servers): State<Servers>,
    Path(place): Path<(String, String, String)>,
) -> Result<Response, Response> {
    if let Some(aggregate) = of_reactor(&place) {
        return servers.react_again(&aggregate).await;
    }
    if let Some(aggregate) = of_deadlines(&place) {
        let is_there = servers.store().await?.fire_again(&aggregate).await.map_err(|error| failed(&error))?;
        return if is_there { Ok(StatusCode::NO_CONTENT.into_response()) } else { Err(not_parked()) };
    }
    let (view, aggregate) = parse(&place).ok_or_else(not_parked)?;
    let folded = servers.store().await?.retry_parked(view, &aggregate).await.map_err(|error| failed(&error))?;
    let Some((partition, revision)) = folded else { return Err(not_parked()) };
    tracing::info!(view = view.name(), aggregate, "parked records folded");
    for _ in 0..SHOW_TRIES {
        match servers.show(Place { feed: FeedId::View(view), partition }, revision).await {
            Ok(()) => return Ok(StatusCode::NO_CONTENT.into_response()),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "Redis does not answer"),
        }
        tokio::time::sleep(SHOW_RETRY).await;
    }
    let detail = "the records are folded, but Redis did not answer: flush it once it is back";
    Ok(border::plain(StatusCode::SERVICE_UNAVAILABLE, detail))
}

async fn discard(
    State(servers): State<Servers>,
    Path(place): Path<(String, String, String)>,
) -> Result<Response, Response> {
    if let Some(aggregate) = of_deadlines(&place) {
        let was_there = servers.store().await?.discard_deadlines(&aggregate).await.map_err(|error| failed(&error))?;
        return if was_there { Ok(StatusCode::NO_CONTENT.into_response()) } else { Err(not_parked()) };
    }
    let (view, aggregate) = match of_reactor(&place) {
        Some(aggregate) => (REACTOR, aggregate),
        None => parse(&place).map(|(view, aggregate)| (view.name(), aggregate)).ok_or_else(not_parked)?,
    };
    let was_there = servers.store().await?.discard_parked(view, &aggregate).await.map_err(|error| failed(&error))?;
    if !was_there {
        return Err(not_parked());
    }
    tracing::warn!(view, aggregate, "parked records discarded");
    Ok(StatusCode::NO_CONTENT.into_response())
}

impl Servers {
    /// Reacts to an aggregate's parked records, in offset order.
    async fn react_again(&self, aggregate: &str) -> Result<Response, Response> {
        let (queues, store) = (self.queues().ok_or_else(reacts_elsewhere)?, self.store().await?);
        let parked = store.parked_reactions(aggregate).await.map_err(|error| failed(&error))?;
        let Some(records) = parked else { return Err(not_parked()) };
        let Again { done, why_not, .. } = again(&queues, &records, self.payment_window).await;
        store.forget_reactions(&done).await.map_err(|error| failed(&error))?;
        tracing::info!(aggregate, records = done.len(), "reacted to parked records");
        match why_not {
            None => Ok(StatusCode::NO_CONTENT.into_response()),
            Some(reason) => Err(still_parked(&reason)),
        }
    }

    /// Reacts to the parked records of all aggregates, page by page. Answers with the number of records that are done,
    /// that failed again, and that are left to the reactors, which retry them from now on.
    async fn react_again_to_all(&self) -> Result<Json<Value>, Response> {
        let queues = self.queues().ok_or_else(reacts_elsewhere)?;
        let (store, begun) = (self.store().await?, Instant::now());
        let (mut done, mut failures, mut last) = (0, 0, ParkedAt { aggregate: String::new(), offset: -1 });
        while begun.elapsed() < TRIED_WITHIN {
            let page = store.parked_reactions_after(&last, MAX_TRIED).await.map_err(|error| failed(&error))?;
            let Some(page) = page else { break };
            let again = again(&queues, &page.records, self.payment_window).await;
            store.forget_reactions(&again.done).await.map_err(|error| failed(&error))?;
            done += again.done.len();
            failures += again.failed;
            last = page.last;
        }
        let left = store.try_reactions_after(&last).await.map_err(|error| failed(&error))?;
        tracing::info!(done, failed = failures, left, "retried all parked reactions");
        Ok(Json(json!({ "done": done, "failed": failures, "left": left })))
    }

    fn queues(&self) -> Option<PartitionQueues> {
        self.queues.get().and_then(WeakQueues::upgrade)
    }

    /// Declares the place stale in Redis and waits until its revised rows are shown, so that later queries see them.
    async fn show(&self, place: Place, revision: i64) -> anyhow::Result<()> {
        declare_stale(&self.redis, &self.redis_prefix, place).await?;
        await_revision(&self.redis, &self.redis_prefix, place, revision, SHOWN_WITHIN).await
    }

    async fn store(&self) -> Result<Store, Response> {
        Store::connect(&self.postgres, Target::Live).await.map_err(|error| failed(&error))
    }
}

/// Returns the aggregate's name if the path names the reactor.
fn of_reactor((view, kind, id): &(String, String, String)) -> Option<String> {
    (view == REACTOR).then(|| format!("{kind}/{id}"))
}

/// Returns the aggregate's name if the path names failed deadlines.
fn of_deadlines((view, kind, id): &(String, String, String)) -> Option<String> {
    (view == DEADLINES).then(|| format!("{kind}/{id}"))
}

/// Returns the view and the aggregate's name, or `None` if there is no such view.
fn parse((view, kind, id): &(String, String, String)) -> Option<(StoredView, String)> {
    Some((StoredView::named(view)?, format!("{kind}/{id}")))
}

fn reacts_elsewhere() -> Response {
    border::plain(StatusCode::CONFLICT, "this projector runs no reactor: send the request to one that does")
}

fn not_parked() -> Response {
    border::plain(StatusCode::NOT_FOUND, "nothing is parked there")
}

fn failed(error: &StoreError) -> Response {
    match error {
        StoreError::Refused { source, .. } => {
            still_parked(&source.as_db_error().map_or_else(|| source.to_string(), ToString::to_string))
        }
        StoreError::Fold(source) => still_parked(&with_causes(source)),
        error @ StoreError::OtherFold(_) => still_parked(&error.to_string()),
        error => border::plain(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

fn still_parked(why: &str) -> Response {
    border::plain(StatusCode::CONFLICT, &format!("still parked: {why}"))
}
