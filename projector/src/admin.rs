//! What operators ask on the admin port: what is parked, and what is to become of it. Any projector answers.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use chassis::border;
use chassis::env::Secret;
use schemas::feeds::{FeedId, StoredView};
use schemas::time::{TimeMs, to_rfc3339};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::Config;
use crate::postgres::{DEADLINES, Store, StoreError, Target};
use crate::reactor::{self, Again, PartitionQueues, REACTOR, WeakQueues};
use crate::redis::{Place, await_revision, declare_stale};

const SHOW_TRIES: u32 = 5;
const SHOW_RETRY: Duration = Duration::from_millis(300);
/// For the projector that has the partition.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
/// Aggregates in one list.
const MAX_LISTED: i64 = 1000;
/// Records that are tried at once, and for how long an operator waits for all. The reactors try the rest.
const MAX_TRIED: i64 = 500;
const TRIED_WITHIN: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Servers {
    postgres_url: Secret,
    redis_url: Secret,
    redis_prefix: String,
    /// Set where this process reacts to events.
    queues: Arc<OnceLock<WeakQueues>>,
    payment_window: Duration,
}

/// `GET /parked`, and `POST /parked/{view}/{type}/{id}/retry` or `…/discard`, or `POST /parked/{reactor|deadlines}/retry`.
/// `queues`: set where this process reacts to events.
pub(crate) fn routes(config: &Config, queues: Arc<OnceLock<WeakQueues>>) -> Router {
    let Config { postgres_url, redis_url, redis_prefix, payment_window, .. } = config.clone();
    Router::new()
        .route("/parked", get(list))
        .route("/parked/{view}/retry", post(retry_all))
        .route("/parked/{view}/{type}/{id}/retry", post(retry))
        .route("/parked/{view}/{type}/{id}/discard", post(discard))
        .with_state(Servers { postgres_url, redis_url, redis_prefix, queues, payment_window })
}

#[derive(Deserialize)]
struct Page {
    /// As the list before told by `next`.
    after: Option<String>,
}

/// The oldest first, with `next` where there are more.
async fn list(State(servers): State<Servers>, Query(page): Query<Page>) -> Result<Json<Value>, Response> {
    let after = page.after.as_deref().map_or(Some((i64::MIN, "", "")), place);
    let after = after.ok_or_else(|| border::plain(StatusCode::BAD_REQUEST, "after: as a list says by next"))?;
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

/// Reads a time, a view and an aggregate.
fn place(after: &str) -> Option<(i64, &str, &str)> {
    let mut parts = after.splitn(3, '/');
    Some((parts.next()?.parse().ok()?, parts.next()?, parts.next()?))
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
    tracing::info!(view = view.name(), aggregate, "what was parked is folded");
    for _ in 0..SHOW_TRIES {
        match servers.show((FeedId::View(view), partition), revision).await {
            Ok(()) => return Ok(StatusCode::NO_CONTENT.into_response()),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "Redis does not answer"),
        }
        tokio::time::sleep(SHOW_RETRY).await;
    }
    let detail = "it is folded, but Redis did not answer: once it is back, empty it";
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
    tracing::warn!(view, aggregate, "what was parked is given up");
    Ok(StatusCode::NO_CONTENT.into_response())
}

impl Servers {
    /// What was not reacted to, in its order.
    async fn react_again(&self, aggregate: &str) -> Result<Response, Response> {
        let (queues, store) = (self.queues().ok_or_else(reacts_elsewhere)?, self.store().await?);
        let parked = store.parked_reactions(aggregate).await.map_err(|error| failed(&error))?;
        let Some(records) = parked else { return Err(not_parked()) };
        let Again { done, why_not, .. } = reactor::again(&queues, &records, self.payment_window).await;
        store.forget_reactions(&done).await.map_err(|error| failed(&error))?;
        tracing::info!(aggregate, records = done.len(), "what was parked is reacted to");
        match why_not {
            None => Ok(StatusCode::NO_CONTENT.into_response()),
            Some(reason) => Err(failed(&StoreError::Fold(reason))),
        }
    }

    /// Of all aggregates, page by page. Tells how many records are done, how many have failed again, and how many are left
    /// to the reactors, which try them from now on.
    async fn react_again_to_all(&self) -> Result<Json<Value>, Response> {
        let queues = self.queues().ok_or_else(reacts_elsewhere)?;
        let (store, begun) = (self.store().await?, Instant::now());
        let (mut done, mut failures, mut last) = (0, 0, (String::new(), -1));
        while begun.elapsed() < TRIED_WITHIN {
            let page = store.parked_reactions_after(&last, MAX_TRIED).await.map_err(|error| failed(&error))?;
            let Some(page) = page else { break };
            let again = reactor::again(&queues, &page.records, self.payment_window).await;
            store.forget_reactions(&again.done).await.map_err(|error| failed(&error))?;
            done += again.done.len();
            failures += again.failed;
            last = page.last;
        }
        let left = store.try_reactions_after(&last).await.map_err(|error| failed(&error))?;
        tracing::info!(done, failed = failures, left, "all that was parked is tried again");
        Ok(Json(json!({ "done": done, "failed": failures, "left": left })))
    }

    fn queues(&self) -> Option<PartitionQueues> {
        self.queues.get().and_then(WeakQueues::upgrade)
    }

    /// Whoever asks from here on is served the place's rows as they were revised.
    async fn show(&self, place: Place, revision: i64) -> anyhow::Result<()> {
        let redis = (&self.redis_url, &*self.redis_prefix);
        declare_stale(redis, place).await?;
        await_revision(redis, place, revision, SHOWN_WITHIN).await
    }

    async fn store(&self) -> Result<Store, Response> {
        Store::connect(&self.postgres_url, Target::Live).await.map_err(|error| failed(&error))
    }
}

/// The aggregate's name, where it is the reactor that it is parked for.
fn of_reactor((view, kind, id): &(String, String, String)) -> Option<String> {
    (view == REACTOR).then(|| format!("{kind}/{id}"))
}

/// The same of deadlines that failed.
fn of_deadlines((view, kind, id): &(String, String, String)) -> Option<String> {
    (view == DEADLINES).then(|| format!("{kind}/{id}"))
}

/// Returns the view, and the aggregate's name.
fn parse((view, kind, id): &(String, String, String)) -> Option<(StoredView, String)> {
    Some((StoredView::named(view)?, format!("{kind}/{id}")))
}

fn reacts_elsewhere() -> Response {
    border::plain(StatusCode::CONFLICT, "this projector does not react to events: ask one that does")
}

fn not_parked() -> Response {
    border::plain(StatusCode::NOT_FOUND, "nothing is parked there")
}

fn failed(error: &StoreError) -> Response {
    match error {
        StoreError::Refused { source, .. } => {
            let why = source.as_db_error().map_or_else(|| source.to_string(), ToString::to_string);
            border::plain(StatusCode::CONFLICT, &format!("it stays parked: {why}"))
        }
        StoreError::Fold(why) => border::plain(StatusCode::CONFLICT, &format!("it stays parked: {why}")),
        error @ StoreError::OtherFold(_) => border::plain(StatusCode::CONFLICT, &format!("it stays parked: {error}")),
        error => border::plain(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}
