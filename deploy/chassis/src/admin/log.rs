//! `GET` and `PUT /log`: the filter of the process's log. A restart restores that of `LOG`.

use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::border;
use crate::telemetry::{FilterError, log_filter, replace_log_filter};

/// Maximum size of a body, which holds a filter.
const MAX_BODY_BYTES: usize = 4096;

pub(super) fn routes() -> Router {
    Router::new().route("/log", get(show).put(replace)).layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

async fn show() -> Response {
    log_filter().map_or_else(|| refuse(&FilterError::NoLog), |filter| Json(json!({ "filter": filter })).into_response())
}

async fn replace(body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else { return expected() };
    let Some(filter) = body.get("filter").and_then(Value::as_str) else { return expected() };
    match replace_log_filter(filter) {
        Ok(()) => show().await,
        Err(error) => refuse(&error),
    }
}

fn expected() -> Response {
    border::plain(StatusCode::BAD_REQUEST, r#"expected a body such as {"filter":"info,command_api=debug"}"#)
}

fn refuse(error: &FilterError) -> Response {
    let status = match error {
        FilterError::TooLong | FilterError::Directive(_) | FilterError::Parse(_) => StatusCode::BAD_REQUEST,
        FilterError::NoLog => StatusCode::CONFLICT,
    };
    border::plain(status, &format!("filter: {error}"))
}
