//! `POST /v1/{aggregates}/{id}/{command}`.

use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::Response;
use schemas::aggregate::{AggregateId, type_routed};
use schemas::commands::{Precondition, parse_if_match};
use schemas::idempotency::IdempotencyKey;
use schemas::problem::{Problem, ProblemKind};
use schemas::trace::is_traceparent;
use tokio::time::Instant;

use super::admission::UnderWay;
use super::{AppState, Listener, answers};
use crate::dispatch::Incoming;
use crate::mailbox::Patience;

/// How long an answer may take; what has none then is "not known yet".
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a command waits for its turn unless its client says otherwise: under overload, who is refused early can try
/// elsewhere or later.
const TURN_WITHIN: Duration = Duration::from_secs(1);
const PREFER: HeaderName = HeaderName::from_static("prefer");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

pub(super) async fn take(
    State(state): State<AppState>,
    Extension(listener): Extension<Listener>,
    _under_way: UnderWay,
    Path((aggregates, id, command)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let received = Instant::now();
    let key = match key(&headers) {
        Ok(key) => key,
        Err(problem) => return answers::problem(&problem),
    };
    let log = match state.log().await {
        Ok(log) => log,
        Err(problem) => return answers::with_key(answers::problem(&problem), &key),
    };
    let incoming = match incoming(listener, &aggregates, &id, command, &headers, body, key.clone(), received) {
        Ok(incoming) => incoming,
        Err(problem) => return answers::with_key(answers::problem(&problem), &key),
    };
    let (aggregate, name) = (incoming.aggregate.clone(), incoming.command.clone());
    let answer = log.dispatcher.submit(incoming).await;
    state.metrics.answered(&aggregate, &name, &answer, received.elapsed());
    answers::with_key(answers::answer(&answer, &id, log.id), &key)
}

#[allow(clippy::too_many_arguments, reason = "each is another part of one request")]
fn incoming(
    listener: Listener,
    aggregates: &str,
    id: &str,
    command: String,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    key: IdempotencyKey,
    received: Instant,
) -> Result<Incoming, Problem> {
    let aggregate =
        type_routed(aggregates).ok_or_else(|| Problem::new(ProblemKind::NotFound, "there is no such aggregate"))?;
    let aggregate = AggregateId::new(aggregate, id)
        .map_err(|error| Problem::new(ProblemKind::InvalidRequest, format!("id: {error}")))?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(ProblemKind::TooLarge, "a command has at most 64 KiB"),
        _ => Problem::new(ProblemKind::InvalidRequest, "the body did not arrive whole"),
    })?;
    if !body.is_empty() && !is_json(headers) {
        return Err(Problem::new(ProblemKind::UnsupportedMediaType, "a command's body is application/json"));
    }
    Ok(Incoming {
        aggregate,
        command: command.into(),
        body,
        key,
        precondition: precondition(headers)?,
        trace: trace(headers),
        cause: None,
        internal: listener == Listener::Internal,
        patience: patience(wait(headers)?, received),
        order: None,
    })
}

fn patience(wait: Option<Duration>, received: Instant) -> Patience {
    let in_mailbox = wait.unwrap_or(TURN_WITHIN);
    Patience { in_mailbox, deadline: received + wait.unwrap_or(ANSWER_WITHIN) }
}

pub(super) fn key(headers: &HeaderMap) -> Result<IdempotencyKey, Problem> {
    let Some(value) = headers.get(answers::IDEMPOTENCY_KEY) else { return Ok(IdempotencyKey::random()) };
    let invalid = |error: String| Problem::new(ProblemKind::InvalidRequest, format!("Idempotency-Key: {error}"));
    let text = value.to_str().map_err(|_| invalid(schemas::idempotency::KeyError.to_string()))?;
    IdempotencyKey::parse(text).map_err(|error| invalid(error.to_string()))
}

fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let invalid = |detail| Problem::new(ProblemKind::InvalidRequest, detail);
    match (headers.get(header::IF_MATCH), headers.get(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Precondition::None),
        (Some(version), None) => version
            .to_str()
            .ok()
            .and_then(parse_if_match)
            .ok_or_else(|| invalid("If-Match: a version in quotes, like \"7\"")),
        (None, Some(star)) if star.as_bytes() == b"*" => Ok(Precondition::Absent),
        (None, Some(_)) => Err(invalid("If-None-Match: only * makes sense for a command")),
        (Some(_), Some(_)) => Err(invalid("If-Match and If-None-Match exclude each other")),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|media_type| media_type.eq_ignore_ascii_case("application/json"))
}

/// Without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim())
}

/// Drops what is no trace context, as its standard asks: nothing else gets into the log by it.
fn trace(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get(TRACEPARENT)?.to_str().ok()?;
    is_traceparent(value).then(|| value.into())
}

/// `Prefer: wait=2`, in seconds.
pub(super) fn wait(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let preferences = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let Some(seconds) =
        preferences.flat_map(|value| value.split([',', ';'])).find_map(|part| part.trim().strip_prefix("wait="))
    else {
        return Ok(None);
    };
    let seconds: f64 = seconds.trim_matches('"').parse().unwrap_or(f64::NAN);
    if (0.0..=60.0).contains(&seconds) {
        return Ok(Some(Duration::from_secs_f64(seconds)));
    }
    Err(Problem::new(ProblemKind::InvalidRequest, "Prefer: wait is a number of seconds up to 60"))
}
