//! `POST /v1/{aggregates}/{id}/{command}`: a single command.

use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use chassis::prefer::Preferences;
use schemas::aggregate::{AggregateId, AggregateType, type_routed};
use schemas::commands::{MAX_CONDITION_VERSIONS, Precondition, is_internal, names, parse_if_match};
use schemas::idempotency::IdempotencyKey;
use schemas::problem::{Problem, ProblemKind};
use schemas::trace::is_traceparent;
use tokio::time::Instant;

use super::{AppState, Listener, answers};
use crate::request::{CommandRequest, TimeLimits};

/// Default time limit of a command, after which its outcome is reported as unknown.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Default time that a command waits for its turn. Under overload, a client that is refused early can retry elsewhere
/// or later.
const TURN_WITHIN: Duration = Duration::from_secs(1);
/// Maximum wait that `Prefer` can ask for; proxies time out after 30 seconds or more.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(25);
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

pub(super) async fn take(
    State(state): State<AppState>,
    Extension(listener): Extension<Listener>,
    Path((aggregates, id, command)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    let received = Instant::now();
    // Checked before headers and body: the border answers here, because it knows the methods that the path allows.
    let Some(aggregate) = type_routed(&aggregates).filter(|aggregate| takes(listener, *aggregate, &command)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    // Destructured here, because a header extractor would copy the headers.
    let (Parts { headers, .. }, body) = request.into_parts();
    let key = match key(&headers) {
        Ok(key) => key.unwrap_or_else(IdempotencyKey::random),
        Err(problem) => return answers::problem(&problem),
    };
    // The permit is held until the command is answered.
    let (body, _under_way) = match state.admit_command(body).await {
        Ok(admitted) => admitted,
        Err(problem) => return answers::with_key(answers::problem(&problem), &key),
    };
    let log = match state.log().await {
        Ok(log) => log,
        Err(problem) => return answers::with_key(answers::problem(&problem), &key),
    };
    let aggregate = AggregateId::new(aggregate, &id)
        .map_err(|error| Problem::new(ProblemKind::InvalidRequest, format!("id: {error}")));
    let asked = aggregate.and_then(|aggregate| incoming(listener, aggregate, command, &headers, body, &key, received));
    let incoming = match asked {
        Ok(incoming) => incoming,
        Err(problem) => return answers::with_key(answers::problem(&problem), &key),
    };
    let answer = log.dispatcher.submit(&incoming).await;
    state.metrics.answered(&incoming.aggregate, &incoming.command, &answer, received.elapsed());
    let response = answers::with_key(answers::answer(&answer, &id, log.id), &key);
    if log.dispatcher.owns(&incoming.aggregate) { response } else { answers::owned_elsewhere(response) }
}

/// Returns whether the listener accepts this command.
pub(super) fn takes(listener: Listener, aggregate: AggregateType, command: &str) -> bool {
    names(aggregate).contains(&command) && (listener == Listener::Internal || !is_internal(aggregate, command))
}

fn incoming(
    listener: Listener,
    aggregate: AggregateId,
    command: String,
    headers: &HeaderMap,
    body: Bytes,
    key: &IdempotencyKey,
    received: Instant,
) -> Result<CommandRequest, Problem> {
    check_encoding(headers)?;
    if !body.is_empty() && !is_of_type(headers, "application/json") {
        return Err(Problem::new(ProblemKind::UnsupportedMediaType, "a command's body must be application/json"));
    }
    Ok(CommandRequest {
        aggregate,
        command: command.into(),
        body,
        key: key.clone(),
        precondition: precondition(headers)?,
        trace: trace(headers),
        cause: None,
        internal: listener == Listener::Internal,
        time_limits: time_limits(Preferences::of(headers, MAX_WAIT).wait, received),
        order: None,
    })
}

fn time_limits(wait: Option<Duration>, received: Instant) -> TimeLimits {
    let in_mailbox = wait.unwrap_or(TURN_WITHIN);
    TimeLimits { in_mailbox, deadline: received + wait.unwrap_or(ANSWER_WITHIN) }
}

/// Reads the request's idempotency key. Two different keys would name two commands, so a request with both is refused.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut lines = headers.get_all(answers::IDEMPOTENCY_KEY).iter();
    let Some(value) = lines.next() else { return Ok(None) };
    let invalid = |error: &str| Problem::new(ProblemKind::InvalidRequest, format!("Idempotency-Key: {error}"));
    let parse = |value: &HeaderValue| {
        let text = value.to_str().map_err(|_| invalid(&schemas::idempotency::KeyError.to_string()))?;
        IdempotencyKey::parse(text).map_err(|error| invalid(&error.to_string()))
    };
    let key = parse(value)?;
    for other in lines {
        if parse(other)? != key {
            return Err(invalid("the request has two different keys; send one"));
        }
    }
    Ok(Some(key))
}

fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let invalid = |detail: String| Problem::new(ProblemKind::InvalidRequest, detail);
    let has = |name: &HeaderName| headers.contains_key(name);
    match (has(&header::IF_MATCH), has(&header::IF_NONE_MATCH)) {
        (false, false) => Ok(Precondition::None),
        (true, false) => {
            // A header that is not text is not a version either.
            let lines = headers.get_all(header::IF_MATCH).iter().map(|line| line.to_str().unwrap_or("?"));
            let help = "versions in quotes, like \"7\"";
            parse_if_match(lines)
                .ok_or_else(|| invalid(format!("If-Match: *, or {help}, {MAX_CONDITION_VERSIONS} at most")))
        }
        (false, true) if headers.get_all(header::IF_NONE_MATCH).iter().all(|line| line == "*") => {
            Ok(Precondition::Absent)
        }
        (false, true) => Err(invalid("If-None-Match: only * makes sense for a command".to_owned())),
        (true, true) => Err(invalid("If-Match and If-None-Match are mutually exclusive".to_owned())),
    }
}

/// Compares the media type, ignoring its parameters and case.
pub(super) fn is_of_type(headers: &HeaderMap, expected: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(expected)
}

/// Refuses a body with a content encoding.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let is_plain = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(is_plain) {
        return Ok(());
    }
    Err(Problem::new(ProblemKind::UnsupportedMediaType, "Content-Encoding is not supported: send the body unencoded"))
}

/// Returns the trace context. An invalid one is dropped, as the standard requires, so that no other text reaches the
/// log.
fn trace(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get(TRACEPARENT)?.to_str().ok()?;
    is_traceparent(value).then(|| value.into())
}
