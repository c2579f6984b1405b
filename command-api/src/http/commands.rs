//! `POST /v1/{aggregates}/{id}/{command}`: a single command.

use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use schemas::aggregate::{AggregateId, AggregateType, type_routed};
use schemas::commands::{Who, who};
use schemas::idempotency::IdempotencyKey;
use schemas::problem::{Problem, ProblemKind};
use tokio::time::Instant;

use super::headers::{check_encoding, is_of_type, key, precondition, trace, wait};
use super::{AppState, Listener, answers};
use crate::metrics::STAFF;
use crate::request::{CommandRequest, TimeLimits};

/// Default time limit of a command, after which its outcome is reported as unknown.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Default time that a command waits for its turn. Under overload, a client that is refused early can retry elsewhere
/// or later.
const TURN_WITHIN: Duration = Duration::from_secs(1);

pub(super) async fn take(
    State(state): State<AppState>,
    Extension(listener): Extension<Listener>,
    Path(named): Path<(String, String, String)>,
    request: Request,
) -> Response {
    let has_credentials = request.headers().contains_key(header::AUTHORIZATION);
    answers::for_caches(answer(state, listener, named, request).await, has_credentials)
}

async fn answer(
    state: AppState,
    listener: Listener,
    (aggregates, id, command): (String, String, String),
    request: Request,
) -> Response {
    let received = Instant::now();
    // Checked before headers and body: the border answers here, because it knows the methods that the path allows.
    let routed =
        type_routed(&aggregates).and_then(|aggregate| Some((aggregate, served(listener, aggregate, &command)?)));
    let Some((aggregate, who)) = routed else { return StatusCode::NOT_FOUND.into_response() };
    // Destructured here, because a header extractor would copy the headers.
    let (Parts { headers, .. }, body) = request.into_parts();
    let key = match key(&headers) {
        Ok(key) => key.unwrap_or_else(IdempotencyKey::random),
        Err(problem) => return answers::problem(&problem),
    };
    if let Err(problem) = state.admit_sender(who, &headers) {
        state.metrics.refused(STAFF);
        return answers::with_key(answers::problem(&problem), &key);
    }
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

/// Returns who may send this command, or `None` if the listener does not serve it.
pub(super) fn served(listener: Listener, aggregate: AggregateType, command: &str) -> Option<Who> {
    who(aggregate, command).filter(|who| match who {
        Who::Client | Who::Staff => true,
        Who::Internal => listener == Listener::Internal,
    })
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
        time_limits: time_limits(wait(headers), received),
        order: None,
    })
}

fn time_limits(wait: Option<Duration>, received: Instant) -> TimeLimits {
    let in_mailbox = wait.unwrap_or(TURN_WITHIN);
    TimeLimits { in_mailbox, deadline: received + wait.unwrap_or(ANSWER_WITHIN) }
}
