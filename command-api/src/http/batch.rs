//! `POST /v1/commands`: a batch of commands, received as a whole and answered line by line, in order.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use chassis::border::{RequestId, request_id};
use chassis::clock::now_ms;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use schemas::aggregate::{AggregateId, type_routed};
use schemas::commands::{BatchLine, MAX_BATCH_LINES, MAX_BODY_BYTES, Precondition, Who, parse_if_match_field, who};
use schemas::headers::{SERVER_TIME, UNTIL};
use schemas::idempotency::{IdempotencyKey, MAX_BATCH_KEY_CHARS};
use schemas::problem::{Problem, ProblemKind};
use schemas::token::Token;
use tokio::time::Instant;

use super::admission::Permit;
use super::headers::{MAX_WAIT, check_encoding, is_of_type, key, wait};
use super::{AppState, Listener, Log, answers};
use crate::batch_order::BatchOrder;
use crate::metrics::{Metrics, STAFF};
use crate::request::{CommandRequest, TimeLimits};

/// Default time limit of a batch. Longer than a single command's, because a batch brings its own queue.
const ANSWER_WITHIN: Duration = MAX_WAIT;
/// Maximum time from a batch's arrival until the client has read the whole answer.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// Number of lines that are decided together and whose answers are sent in one piece.
const PIECE_LINES: usize = 256;
/// Maximum number of pieces of one batch in flight.
const MAX_UNDER_WAY: usize = 4;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) async fn take(
    State(state): State<AppState>,
    Extension(listener): Extension<Listener>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let key = match batch_key(&headers) {
        Ok(key) => key,
        Err(problem) => return answers::problem(&problem),
    };
    let response = match begin(&state, listener, key.clone(), &headers, body).await {
        Ok(body) => {
            let mut response = Response::new(body);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
            if listener == Listener::Internal {
                response.headers_mut().insert(SERVER_TIME.lower, now_ms().into());
            }
            response
        }
        Err(problem) => answers::problem(&problem),
    };
    let response = answers::for_caches(response, headers.contains_key(header::AUTHORIZATION));
    match &key {
        Some(key) => answers::with_key(response, key),
        None => response,
    }
}

/// Reads the key of the whole batch, from which lines without a key derive theirs.
fn batch_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    match key(headers)? {
        Some(key) if key.as_str().len() > MAX_BATCH_KEY_CHARS => {
            let detail = format!("Idempotency-Key: a batch's key has at most {MAX_BATCH_KEY_CHARS} characters");
            Err(Problem::new(ProblemKind::InvalidRequest, detail))
        }
        key => Ok(key),
    }
}

async fn begin(
    state: &AppState,
    listener: Listener,
    key: Option<IdempotencyKey>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Body, Problem> {
    check_encoding(headers)?;
    if !is_of_type(headers, "application/x-ndjson") {
        return Err(Problem::new(ProblemKind::UnsupportedMediaType, "a batch is application/x-ndjson"));
    }
    let (body, admitted) = state.admit_batch(body).await?;
    let log = state.log().await?;
    let lines = lines(&body);
    if lines.len() > MAX_BATCH_LINES {
        return Err(Problem::new(ProblemKind::TooLarge, "a batch has at most 10,000 lines"));
    }
    // A batch has its own deadline and is slowed down instead of refused.
    let in_mailbox = wait(headers).unwrap_or(ANSWER_WITHIN);
    let internal = listener == Listener::Internal;
    let left = if internal { left(headers)? } else { None };
    let time_limits = TimeLimits { in_mailbox, deadline: Instant::now() + in_mailbox.min(left.unwrap_or(in_mailbox)) };
    let order = BatchOrder::new();
    let request = request_id();
    let metrics = state.metrics.clone();
    let staff = state.admit_sender(Who::Staff, headers);
    let shared = Arc::new(Shared { log, metrics, order, internal, staff, time_limits, key, request });
    let pieces: Vec<_> = lines.chunks(PIECE_LINES).map(<[Bytes]>::to_vec).collect();
    let firsts = (1..).step_by(PIECE_LINES);
    let pieces = firsts.zip(pieces).map(move |(first, lines)| shared.clone().answer_of_request(first, lines));
    Ok(answered(pieces, admitted, Instant::now() + READ_WITHIN))
}

/// Returns a body of answered pieces, in order. It fails at `ends`, which closes the connection of a client that has
/// not read all of it by then and frees the batch's place.
fn answered<F>(pieces: impl Iterator<Item = F> + Send + 'static, admitted: Permit, ends: Instant) -> Body
where
    F: Future<Output = Vec<u8>> + Send + 'static,
{
    let answers = futures_util::stream::unfold(
        (admitted, pieces, FuturesOrdered::new()),
        async |(admitted, mut pieces, mut answering)| {
            while answering.len() < MAX_UNDER_WAY
                && let Some(piece) = pieces.next()
            {
                answering.push_back(piece);
            }
            let piece: Vec<u8> = answering.next().await?;
            Some((piece, (admitted, pieces, answering)))
        },
    );
    Body::from_stream(answers.map(move |piece| if Instant::now() < ends { Ok(piece) } else { Err(TooSlow) }))
}

#[derive(Debug, thiserror::Error)]
#[error("the answer to a batch was not read within {READ_WITHIN:?}")]
struct TooSlow;

/// Returns how much longer the sender waits for the answer, if a header says so.
fn left(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(until) = headers.get(UNTIL.lower) else { return Ok(None) };
    let until = until.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    let until =
        until.ok_or_else(|| Problem::new(ProblemKind::InvalidRequest, format!("{}: milliseconds", UNTIL.lower)))?;
    Ok(Some(Duration::from_millis(until.saturating_sub(now_ms()))))
}

/// Splits a body into its lines, without blank ones, such as one at the end, and without a leading byte order mark.
fn lines(body: &Bytes) -> Vec<Bytes> {
    let body = &body.slice_ref(body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body));
    let filled = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    filled.map(|line| body.slice_ref(line)).collect()
}

/// State shared by the lines of a batch.
struct Shared {
    log: Log,
    metrics: Arc<Metrics>,
    order: Arc<BatchOrder>,
    internal: bool,
    /// Answer to the commands of staff, unless the batch may have them.
    staff: Result<(), Problem>,
    time_limits: TimeLimits,
    /// Key of the whole batch.
    key: Option<IdempotencyKey>,
    request: Option<RequestId>,
}

impl Shared {
    /// Answers lines within the scope of the request, whose response has already begun.
    async fn answer_of_request(self: Arc<Self>, first: usize, lines: Vec<Bytes>) -> Vec<u8> {
        match self.request {
            Some(request) => request.scope(self.answer(first, &lines)).await,
            None => self.answer(first, &lines).await,
        }
    }

    /// Answers lines; `first` is the number of the first one, counted from 1.
    async fn answer(&self, first: usize, lines: &[Bytes]) -> Vec<u8> {
        let received = Instant::now();
        let read: Vec<_> = (first..).zip(lines).map(|(number, line)| self.read(number, line)).collect();
        let commands: Vec<_> = read.iter().filter_map(|read| read.as_ref().ok()).collect();
        let answers = self.log.dispatcher.submit_lines(&self.order, &commands, self.time_limits).await;
        let (mut answers, after) = (answers.into_iter(), received.elapsed());
        let mut written = Vec::with_capacity(lines.len() * answers::ANSWER_BYTES);
        for read in &read {
            match read {
                Ok(CommandRequest { aggregate, command, key, .. }) => {
                    let answer = answers.next().expect("every command has an outcome");
                    self.metrics.answered(aggregate, command, &answer, after);
                    answers::write_line(&mut written, &answer, aggregate.id(), key, self.log.id);
                }
                Err((problem, id)) => answers::write_problem_line(&mut written, problem, id, None, None),
            }
        }
        written
    }

    /// Parses a line. An error carries the line's id, empty if it could not be read.
    fn read(&self, number: usize, line: &Bytes) -> Result<CommandRequest, (Problem, Box<str>)> {
        let invalid = |detail: String, id: &str| (Problem::new(ProblemKind::InvalidRequest, detail), Box::from(id));
        if line.len() > MAX_BODY_BYTES {
            return Err((Problem::new(ProblemKind::TooLarge, "a line of a batch has at most 64 KiB"), Box::default()));
        }
        let parsed: BatchLine<'_> = serde_json::from_slice(line).map_err(|error| invalid(error.to_string(), ""))?;
        let id = &*parsed.id;
        let aggregate = type_routed(&parsed.aggregate)
            .ok_or_else(|| (Problem::new(ProblemKind::NotFound, "no such aggregate type"), Box::from(id)))?;
        match who(aggregate, &parsed.command) {
            Some(Who::Staff) => self.staff.clone().map_err(|problem| {
                self.metrics.refused(STAFF);
                (problem, Box::from(id))
            })?,
            // The owner answers commands that do not exist, and internal ones of clients.
            Some(Who::Client | Who::Internal) | None => {}
        }
        let aggregate = AggregateId::new(aggregate, id).map_err(|error| invalid(format!("id: {error}"), id))?;
        let key = match parsed.key.as_deref().map(IdempotencyKey::from_bare) {
            None => self.key.as_ref().map_or_else(IdempotencyKey::random, |batch| batch.of_line(number)),
            Some(key) => key.map_err(|error| invalid(format!("key: {error}"), id))?,
        };
        let cause = match parsed.cause.as_deref() {
            Some(cause) if self.internal && is_cause(cause) => Some(cause.into()),
            Some(_) if self.internal => {
                return Err(invalid("cause: expected an event, such as 3-1024-7".to_owned(), id));
            }
            Some(_) => return Err(invalid("unknown field `cause`".to_owned(), id)),
            None => None,
        };
        let precondition = match parsed.if_match.as_deref() {
            None => Precondition::None,
            Some(text) => parse_if_match_field(text)
                .ok_or_else(|| invalid("if_match: expected a version, such as \"7\"".to_owned(), id))?,
        };
        let data = parsed.data.map(|data| data.get().as_bytes()).filter(|data| *data != b"null").unwrap_or_default();
        Ok(CommandRequest {
            aggregate,
            command: parsed.command.as_ref().into(),
            body: line.slice_ref(data),
            key,
            precondition,
            trace: None,
            cause,
            internal: self.internal,
            time_limits: self.time_limits,
            order: Some(self.order.clone()),
        })
    }
}

/// Returns whether `text` names an event: its partition, its record's offset and its version, in this log or in that
/// before the dot.
fn is_cause(text: &str) -> bool {
    let (is_log, event) = match text.split_once('.') {
        Some((log, event)) => (format!("{log}.0-0").parse::<Token>().is_ok(), event),
        None => (true, text),
    };
    let is_number = |part: &str| part.parse::<u64>().is_ok_and(|number| number.to_string() == part);
    is_log && event.split('-').count() == 3 && event.split('-').all(is_number)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::routing::post;
    use chassis::border::Border;
    use chassis::http::Limits;
    use chassis::shutdown::Shutdown;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::admission::tests::{all_places_are_free, http_state};
    use super::*;

    #[test]
    fn a_cause_is_the_name_of_an_event_and_no_other_text() {
        assert!(is_cause("0-0-1") && is_cause("11-9223372036854775807-18446744073709551615"));
        assert!(is_cause("k7x2.3-1042-7"));
        for text in ["k7x2.", "k7x2.3-1042", ".1-2-3", "K7X2.1-2-3", "k7x2.1-2-3.1-2-3", "k7x2,1-2-3"] {
            assert!(!is_cause(text), "{text:?}");
        }
        for text in
            ["", "1-2", "1-2-3-4", "1--2", "-1-2", "1-2-x", "1-2-+3", "01-2-3", "1-2-3\0", "1-2-18446744073709551616"]
        {
            assert!(!is_cause(text), "{text:?}");
        }
    }

    const SOON: Duration = Duration::from_secs(10);

    /// Serves batches whose answers far exceed the kernel's buffers and must be read within `read_within`.
    async fn serve(state: AppState, read_within: Duration, limits: Limits) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let take = async move |body: Body| {
            let (_, admitted) = state.admit_batch(body).await.unwrap();
            let lines = (0..1_000_000).map(|_| std::future::ready(vec![b' '; 1024]));
            answered(lines, admitted, Instant::now() + read_within)
        };
        let router = Router::new().route("/", post(take));
        tokio::spawn(chassis::http::serve(listener, router, Border::plain(), limits, Shutdown::new()));
        address
    }

    /// Returns a connection on which the answer has begun.
    async fn begin(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'H');
        stream
    }

    #[tokio::test]
    async fn a_client_that_stops_reading_the_answer_loses_its_place() {
        let state = Arc::new(http_state());
        let limits = Limits { write_timeout: Duration::from_millis(200), ..Limits::new(SOON) };
        let address = serve(state.clone(), Duration::from_secs(600), limits).await;
        let _stalled = begin(address).await;
        tokio::time::timeout(SOON, all_places_are_free(&state)).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_reads_the_answer_too_slowly_loses_its_place() {
        let state = Arc::new(http_state());
        let address = serve(state.clone(), Duration::from_millis(200), Limits::new(SOON)).await;
        let mut reader = begin(address).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(SOON, reader.read_to_end(&mut answer)).await.unwrap();
        assert!(read.is_err() || !answer.ends_with(b"0\r\n\r\n"), "a truncated answer must not seem complete");
        tokio::time::timeout(SOON, all_places_are_free(&state)).await.unwrap();
    }
}
