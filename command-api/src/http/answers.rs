//! HTTP responses for the outcomes of commands.

use std::borrow::Cow;
use std::io::{self, Write as _};

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use chassis::border::{self, RequestId, request_id};
use schemas::answers::{Answer, RETRY_AFTER_SECS};
use schemas::headers;
use schemas::idempotency::IdempotencyKey;
use schemas::problem::Problem;
use schemas::token::{LogId, Token};

pub(super) const CONSISTENCY_TOKEN: HeaderName = HeaderName::from_static(headers::CONSISTENCY_TOKEN.lower);
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(headers::IDEMPOTENCY_KEY.lower);
const OWNER: HeaderName = HeaderName::from_static(headers::OWNER.lower);
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static(headers::IDEMPOTENT_REPLAYED.lower);

/// Initial capacity for the body of an accepted command's answer; usually enough.
pub(super) const ANSWER_BYTES: usize = 192;
const TAKES_ALL: &str = "writing to a Vec cannot fail";
/// Initial capacity for an answer's headers, including those that the connection adds, so that the map need not grow.
const ANSWER_HEADERS: usize = 8;

pub(super) fn problem(problem: &Problem) -> Response {
    let mut response = border::problem(problem.status, |id| problem.clone().of_request(id).to_json());
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Forbids all caches to keep the answer to a request with credentials.
pub(super) fn for_caches(mut response: Response, has_credentials: bool) -> Response {
    if has_credentials {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// A problem that many requests receive, serialized in advance except for the request's id.
pub(super) struct Prepared {
    status: u16,
    before_id: Vec<u8>,
}

const AFTER_ID: &[u8] = b"\"}";

impl Prepared {
    pub(super) fn new(problem: &Problem) -> Self {
        let mut json = problem.clone().of_request(Some("")).to_json();
        // The id comes last and contains no characters that JSON would escape.
        assert!(json.ends_with(AFTER_ID), "the request id is a problem's last field");
        json.truncate(json.len() - AFTER_ID.len());
        Self { status: problem.status, before_id: json }
    }

    pub(super) fn answer(&self) -> Response {
        border::problem(self.status, |id| [&self.before_id, id.unwrap_or_default().as_bytes(), AFTER_ID].concat())
    }
}

/// Adds the idempotency key. Every answer has it, even a 503, because a retry needs it.
pub(super) fn with_key(mut response: Response, key: &IdempotencyKey) -> Response {
    if let Ok(value) = HeaderValue::from_str(key.as_str()) {
        response.headers_mut().insert(IDEMPOTENCY_KEY, value);
    }
    response
}

pub(super) fn owned_elsewhere(mut response: Response) -> Response {
    response.headers_mut().insert(OWNER, HeaderValue::from_static("elsewhere"));
    response
}

pub(super) fn answer(answer: &Answer, id: &str, log_id: LogId) -> Response {
    let token = answer.position().map(|(partition, offset)| Token::new(log_id, partition, offset).to_string());
    let mut response = match answer {
        Answer::Accepted { version, events, replayed, order, .. } => {
            let (token, mut body) = (token.as_deref().unwrap_or_default(), Vec::with_capacity(ANSWER_BYTES));
            let accepted = Accepted { id, version: *version, events, token, order: order.as_deref() };
            accepted.write(&mut body, None).expect(TAKES_ALL);
            let mut response = Response::new(Body::from(body));
            response.headers_mut().reserve(ANSWER_HEADERS);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if *replayed {
                response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
            }
            response
        }
        other => problem(&other.problem().expect("every other answer is a problem")),
    };
    let headers = response.headers_mut();
    if let Some(token) = token.and_then(|token| HeaderValue::try_from(token).ok()) {
        headers.insert(CONSISTENCY_TOKEN, token);
    }
    if let Some(etag) = answer.version().and_then(|version| HeaderValue::try_from(format!("\"{version}\"")).ok()) {
        headers.insert(header::ETAG, etag);
    }
    response
}

/// Writes one line of a batch's answer, including the line end.
pub(super) fn write_line(to: &mut Vec<u8>, answer: &Answer, id: &str, key: &IdempotencyKey, log_id: LogId) {
    let token = answer.position().map(|(partition, offset)| Token::new(log_id, partition, offset).to_string());
    let Answer::Accepted { version, events, replayed, order, .. } = answer else {
        let problem = answer.problem().expect("every other answer is a problem");
        return write_problem_line(to, &problem, id, Some(key), token);
    };
    let token = token.as_deref().unwrap_or_default();
    let accepted = Accepted { id, version: *version, events, token, order: order.as_deref() };
    accepted.write(to, Some((key, *replayed))).expect(TAKES_ALL);
    to.push(b'\n');
}

/// Writes a problem, with fields for the values that a single answer has in its headers.
pub(super) fn write_problem_line(
    to: &mut Vec<u8>,
    problem: &Problem,
    id: &str,
    key: Option<&IdempotencyKey>,
    token: Option<String>,
) {
    let request = request_id();
    let told = problem.clone().of_request(request.as_ref().map(RequestId::as_str));
    let mut object = serde_json::to_value(told).expect("a problem can be represented in JSON");
    object["id"] = id.into();
    if let Some(key) = key {
        object["idempotency_key"] = key.as_str().into();
    }
    if let Some(token) = token {
        object["token"] = token.into();
    }
    if problem.status == 503 {
        object["retry_after"] = RETRY_AFTER_SECS.into();
    }
    serde_json::to_writer(&mut *to, &object).expect("a JSON value can be serialized");
    to.push(b'\n');
}

/// Answer to an accepted command, formatted by hand, because it is on the hot path: ids, event names and tokens need no
/// escaping.
struct Accepted<'a> {
    id: &'a str,
    version: u64,
    events: &'a [Cow<'static, str>],
    token: &'a str,
    /// Order that a claim created.
    order: Option<&'a str>,
}

impl Accepted<'_> {
    /// Writes the answer. A line of a batch also has the key, and says whether it repeats an earlier answer.
    fn write(&self, to: &mut Vec<u8>, line: Option<(&IdempotencyKey, bool)>) -> io::Result<()> {
        let Self { id, version, events, token, order } = self;
        let status = if line.is_some() { "\"status\":200," } else { "" };
        write!(to, "{{{status}\"id\":\"{id}\",\"version\":{version},\"events\":[")?;
        for (index, event) in events.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(to, "{comma}\"{event}\"")?;
        }
        write!(to, "],\"token\":\"{token}\"")?;
        if let Some(order) = order {
            write!(to, ",\"order\":\"{order}\"")?;
        }
        if let Some((key, replayed)) = line {
            to.write_all(b",\"idempotency_key\":")?;
            serde_json::to_writer(&mut *to, key.as_str())?;
            if replayed {
                to.write_all(b",\"replayed\":true")?;
            }
        }
        to.write_all(b"}")
    }
}
