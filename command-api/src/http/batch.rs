//! `POST /v1/commands`: many commands, read whole, answered line by line in their order.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use schemas::aggregate::{AggregateId, type_routed};
use schemas::answers::Answer;
use schemas::commands::{BatchLine, MAX_BATCH_LINES, MAX_BODY_BYTES, Precondition, UNTIL, parse_if_match_field};
use schemas::idempotency::IdempotencyKey;
use schemas::problem::{Problem, ProblemKind};
use tokio::time::Instant;

use super::admission::BatchUnderWay;
use super::commands::{media_type, wait};
use super::{AppState, Listener, Log, answers};
use crate::dispatch::{BatchOrder, Dispatcher, Incoming, is_unavailable, now};
use crate::mailbox::Patience;
use crate::metrics::Metrics;

/// A batch may wait longer than one command: it brings its own queue.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Lines of one batch that are under way at once.
const MAX_UNDER_WAY: usize = 1024;
/// A cause is `{partition}-{offset}-{version}`.
const MAX_CAUSE_CHARS: usize = 64;
/// Answered lines that leave in one piece.
const MAX_CHUNK_LINES: usize = 256;

pub(super) async fn take(
    State(state): State<AppState>,
    Extension(listener): Extension<Listener>,
    admitted: BatchUnderWay,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match begin(&state, listener, admitted, &headers, body).await {
        Ok(body) => {
            let mut response = Response::new(body);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
            response
        }
        Err(problem) => answers::problem(&problem),
    }
}

async fn begin(
    state: &AppState,
    listener: Listener,
    admitted: BatchUnderWay,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Body, Problem> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(ProblemKind::TooLarge, "a batch has at most 8 MiB"),
        _ => Problem::new(ProblemKind::InvalidRequest, "the body did not arrive whole"),
    })?;
    if media_type(headers) != Some("application/x-ndjson") {
        return Err(Problem::new(ProblemKind::UnsupportedMediaType, "a batch is application/x-ndjson"));
    }
    let log = state.log().await?;
    let lines = lines(&body);
    if lines.len() > MAX_BATCH_LINES {
        return Err(Problem::new(ProblemKind::TooLarge, "a batch has at most 10,000 lines"));
    }
    // It was told when to end, and is slowed down instead of refused.
    let in_mailbox = wait(headers)?.unwrap_or(ANSWER_WITHIN);
    let internal = listener == Listener::Internal;
    let left = if internal { left(headers)? } else { None };
    let patience = Patience { in_mailbox, deadline: Instant::now() + in_mailbox.min(left.unwrap_or(in_mailbox)) };
    let order = Arc::new(BatchOrder::default());
    let under_way = Shared { log, metrics: state.metrics.clone(), order, internal, patience };
    let answers = futures_util::stream::unfold(
        (under_way, admitted, lines.into_iter(), FuturesOrdered::new()),
        async |(under_way, admitted, mut lines, mut answering)| {
            while answering.len() < MAX_UNDER_WAY
                && let Some(line) = lines.next()
            {
                answering.push_back(under_way.clone().answer(line));
            }
            let line: Vec<u8> = answering.next().await?;
            Some((line, (under_way, admitted, lines, answering)))
        },
    );
    let chunks = answers.ready_chunks(MAX_CHUNK_LINES).map(|lines| Ok::<_, std::convert::Infallible>(lines.concat()));
    Ok(Body::from_stream(chunks))
}

/// How long its sender still waits, if it says so.
fn left(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(until) = headers.get(UNTIL) else { return Ok(None) };
    let until = until.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    let until = until.ok_or_else(|| Problem::new(ProblemKind::InvalidRequest, format!("{UNTIL}: milliseconds")))?;
    Ok(Some(Duration::from_millis(until.saturating_sub(now().0))))
}

/// Blank lines, such as one at the end, are nobody's.
fn lines(body: &Bytes) -> Vec<Bytes> {
    let filled = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    filled.map(|line| body.slice_ref(line)).collect()
}

/// What the lines of a batch share.
#[derive(Clone)]
struct Shared {
    log: Log,
    metrics: Arc<Metrics>,
    order: Arc<BatchOrder>,
    internal: bool,
    patience: Patience,
}

impl Shared {
    async fn answer(self, line: Bytes) -> Vec<u8> {
        let received = Instant::now();
        let (incoming, id) = match self.read(&line) {
            Ok(read) => read,
            Err((problem, id)) => {
                let mut line = answers::problem_line(&problem, &id, None, None);
                line.push(b'\n');
                return line;
            }
        };
        let (aggregate, key, name) = (incoming.aggregate.clone(), incoming.key.clone(), incoming.command.clone());
        let answer = submit(&self.log.dispatcher, &self.order, &aggregate, incoming).await;
        self.metrics.answered(&aggregate, &name, &answer, received.elapsed());
        answers::line(&answer, &id, &key, self.log.id)
    }

    /// With the line's id; a problem has as much of it as could be read.
    fn read(&self, line: &Bytes) -> Result<(Incoming, String), (Problem, String)> {
        let invalid = |detail: String, id: &str| (Problem::new(ProblemKind::InvalidRequest, detail), id.to_owned());
        if line.len() > MAX_BODY_BYTES {
            return Err((Problem::new(ProblemKind::TooLarge, "a line of a batch has at most 64 KiB"), String::new()));
        }
        let parsed: BatchLine<'_> = serde_json::from_slice(line).map_err(|error| invalid(error.to_string(), ""))?;
        let id = &*parsed.id;
        let aggregate = type_routed(&parsed.aggregate)
            .ok_or_else(|| (Problem::new(ProblemKind::NotFound, "there is no such aggregate"), id.to_owned()))?;
        let aggregate = AggregateId::new(aggregate, id).map_err(|error| invalid(format!("id: {error}"), id))?;
        let key = match parsed.key.as_deref().map(IdempotencyKey::from_bare) {
            None => IdempotencyKey::random(),
            Some(key) => key.map_err(|error| invalid(format!("key: {error}"), id))?,
        };
        let cause = match parsed.cause.as_deref() {
            Some(cause) if self.internal && cause.len() <= MAX_CAUSE_CHARS => Some(cause.into()),
            Some(_) if self.internal => return Err(invalid("cause: it is too long".to_owned(), id)),
            Some(_) => return Err(invalid("unknown field `cause`".to_owned(), id)),
            None => None,
        };
        let precondition = match parsed.if_match.as_deref() {
            None => Precondition::None,
            Some(text) => {
                parse_if_match_field(text).ok_or_else(|| invalid("if_match: a version, like \"7\"".to_owned(), id))?
            }
        };
        let data = parsed.data.map(|data| data.get().as_bytes()).filter(|data| *data != b"null").unwrap_or_default();
        let incoming = Incoming {
            aggregate,
            command: parsed.command.as_ref().into(),
            body: line.slice_ref(data),
            key,
            precondition,
            trace: None,
            cause,
            internal: self.internal,
            patience: self.patience,
            order: Some(self.order.clone()),
        };
        Ok((incoming, id.to_owned()))
    }
}

/// After a 503 the later lines of the same aggregate are 503 too: they would overtake it.
async fn submit(dispatcher: &Dispatcher, order: &BatchOrder, aggregate: &AggregateId, incoming: Incoming) -> Answer {
    if order.is_refused(aggregate) {
        return Answer::Overloaded { detail: "an earlier line for the same aggregate was refused".into() };
    }
    let answer = dispatcher.submit(incoming).await;
    if is_unavailable(&answer) {
        order.refuse(aggregate);
    }
    answer
}
