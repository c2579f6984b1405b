//! What operators ask on the admin port: what is parked, and what is to become of it. Any projector answers.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use chassis::border;
use chassis::env::Secret;
use schemas::feeds::{FeedId, StoredView};
use schemas::time::{TimeMs, to_rfc3339};
use serde_json::{Value, json};

use crate::config::Config;
use crate::postgres::{DEADLINES, Store, StoreError, Target};
use crate::reactor::{self, REACTOR, WeakLanes};
use crate::redis::{Place, await_revision, declare_stale};

const SHOW_TRIES: u32 = 5;
const SHOW_RETRY: Duration = Duration::from_millis(300);
/// For the projector that has the partition.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Servers {
    postgres_url: Secret,
    redis_url: Secret,
    redis_prefix: String,
    /// Set where this process reacts to events.
    lanes: Arc<OnceLock<WeakLanes>>,
    payment_window: Duration,
}

/// `GET /parked`, and `POST /parked/{view}/{type}/{id}/retry` or `…/discard`.
/// `lanes`: set where this process reacts to events.
pub(crate) fn routes(config: &Config, lanes: Arc<OnceLock<WeakLanes>>) -> Router {
    let Config { postgres_url, redis_url, redis_prefix, payment_window, .. } = config.clone();
    Router::new()
        .route("/parked", get(list))
        .route("/parked/{view}/{type}/{id}/retry", post(retry))
        .route("/parked/{view}/{type}/{id}/discard", post(discard))
        .with_state(Servers { postgres_url, redis_url, redis_prefix, lanes, payment_window })
}

async fn list(State(servers): State<Servers>) -> Result<Json<Value>, Response> {
    let parked = servers.store().await?.list_parked().await.map_err(|error| failed(&error))?;
    let entries: Vec<_> = parked
        .into_iter()
        .map(|parked| {
            json!({
                "view": parked.view,
                "aggregate": parked.aggregate,
                "records": parked.records,
                "first_version": parked.first_version,
                "reason": parked.reason,
                "since": to_rfc3339(TimeMs(parked.since_ms.cast_unsigned())),
            })
        })
        .collect();
    Ok(Json(json!({ "parked": entries })))
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
        let Some(lanes) = self.lanes.get().and_then(WeakLanes::upgrade) else {
            let detail = "this projector does not react to events: ask one that does";
            return Err(border::plain(StatusCode::CONFLICT, detail));
        };
        let store = self.store().await?;
        let parked = store.parked_reactions(aggregate).await.map_err(|error| failed(&error))?;
        let Some(records) = parked else { return Err(not_parked()) };
        let (done, why_not) = reactor::again(&lanes, &records, self.payment_window).await;
        store.forget_reactions(aggregate, &done).await.map_err(|error| failed(&error))?;
        tracing::info!(aggregate, records = done.len(), "what was parked is reacted to");
        match why_not {
            None => Ok(StatusCode::NO_CONTENT.into_response()),
            Some(reason) => Err(failed(&StoreError::Fold(reason))),
        }
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
