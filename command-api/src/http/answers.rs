//! Outcomes as HTTP answers.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use chassis::border::{self, RequestId, request_id};
use schemas::answers::{Answer, RETRY_AFTER_SECS};
use schemas::idempotency::IdempotencyKey;
use schemas::problem::Problem;
use schemas::token::{LogId, Token};

pub(super) const CONSISTENCY_TOKEN: HeaderName = HeaderName::from_static("consistency-token");
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says `elsewhere` where the command was brought to another instance, which owns its partition: a load balancer may lead
/// the next one there.
const OWNER: HeaderName = HeaderName::from_static("stampede-owner");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Room for all that an answer's head gets, by the connection too, so that it does not grow step by step.
const ANSWER_HEADERS: usize = 8;

pub(super) fn problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).expect("problems have statuses of HTTP");
    let id = request_id();
    let told = problem.clone().of_request(id.as_ref().map(RequestId::as_str));
    border::problem(status, told.to_json())
}

/// Every answer tells its key, a 503 too: a retry needs it.
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
            let token = token.as_deref().unwrap_or_default();
            let body = accepted_body(id, *version, events, token, order.as_deref(), None);
            let mut response = Response::new(Body::from(body));
            response.headers_mut().reserve(ANSWER_HEADERS);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if *replayed {
                response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
            }
            response
        }
        other => problem(&other.problem().expect("only an accepted command has none")),
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

/// A line of a batch's answer, with its line end.
pub(super) fn line(answer: &Answer, id: &str, key: &IdempotencyKey, log_id: LogId) -> Vec<u8> {
    let token = answer.position().map(|(partition, offset)| Token::new(log_id, partition, offset).to_string());
    let mut line = match answer {
        Answer::Accepted { version, events, replayed, order, .. } => {
            let (token, extra) = (token.as_deref().unwrap_or_default(), Some((key, *replayed)));
            accepted_body(id, *version, events, token, order.as_deref(), extra).into_bytes()
        }
        other => problem_line(&other.problem().expect("only an accepted command has none"), id, Some(key), token),
    };
    line.push(b'\n');
    line
}

/// A problem with what in a single answer the headers say.
pub(super) fn problem_line(
    problem: &Problem,
    id: &str,
    key: Option<&IdempotencyKey>,
    token: Option<String>,
) -> Vec<u8> {
    let request = request_id();
    let told = problem.clone().of_request(request.as_ref().map(RequestId::as_str));
    let mut object = serde_json::to_value(told).expect("a problem holds nothing that JSON cannot");
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
    serde_json::to_vec(&object).expect("it was JSON before")
}

/// Written by hand, because it is on the hot path: ids, event names and tokens need no escapes.
fn accepted_body<E: AsRef<str>>(
    id: &str,
    version: u64,
    events: &[E],
    token: &str,
    order: Option<&str>,
    line: Option<(&IdempotencyKey, bool)>,
) -> String {
    use std::fmt::Write as _;
    let mut body = String::with_capacity(160);
    body.push('{');
    if line.is_some() {
        body.push_str("\"status\":200,");
    }
    write!(body, "\"id\":\"{id}\",\"version\":{version},\"events\":[").expect("a string takes all");
    for (index, event) in events.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(body, "{comma}\"{}\"", event.as_ref()).expect("a string takes all");
    }
    write!(body, "],\"token\":\"{token}\"").expect("a string takes all");
    if let Some(order) = order {
        write!(body, ",\"order\":\"{order}\"").expect("a string takes all");
    }
    if let Some((key, replayed)) = line {
        let key = serde_json::to_string(key.as_str()).expect("a key is a string");
        write!(body, ",\"idempotency_key\":{key}").expect("a string takes all");
        if replayed {
            body.push_str(",\"replayed\":true");
        }
    }
    body.push('}');
    body
}
