//! Admin routes for operators: listing the quarantined aggregates and releasing one.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use chassis::border;
use schemas::aggregate::AggregateId;
use schemas::problem::{Problem, ProblemKind};
use schemas::time::to_rfc3339;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Log, answers};
use crate::partition::Release;

type LogState = State<watch::Receiver<Option<Log>>>;

/// Returns the routes `GET /quarantine` and `POST /quarantine/{type}/{id}/release`.
pub(crate) fn routes(log: watch::Receiver<Option<Log>>) -> Router {
    Router::new()
        .route("/quarantine", get(list))
        .route("/quarantine/{aggregate}/{id}/release", post(release))
        .with_state(log)
}

async fn list(State(log): LogState) -> Json<Value> {
    let log = log.borrow().clone();
    let Some(log) = log else { return Json(json!({ "quarantined": [] })) };
    let quarantined = log.dispatcher.quarantined().await;
    let entries: Vec<_> = quarantined
        .iter()
        .map(|(aggregate, why)| {
            json!({
                "aggregate": aggregate.as_str(),
                "reason": why.reason,
                "since": to_rfc3339(why.since),
                "state_lost": why.state_lost,
            })
        })
        .collect();
    Json(json!({ "quarantined": entries }))
}

async fn release(State(log): LogState, Path((aggregate, id)): Path<(String, String)>) -> Response {
    let log = log.borrow().clone();
    let (Some(log), Ok(aggregate)) = (log, AggregateId::parse(&format!("{aggregate}/{id}"))) else {
        return not_found("no such aggregate");
    };
    match log.dispatcher.release(aggregate).await {
        Release::Released => StatusCode::NO_CONTENT.into_response(),
        Release::NotQuarantined => not_found("the aggregate is not quarantined on this instance"),
        Release::StateLost => {
            let detail = "the aggregate's events cannot be folded; deploy a build that can fold them";
            border::plain(StatusCode::CONFLICT, detail)
        }
    }
}

fn not_found(detail: &'static str) -> Response {
    answers::problem(&Problem::new(ProblemKind::NotFound, detail))
}
