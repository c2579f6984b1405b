//! Headers of requests with commands: `Idempotency-Key`, `If-Match`, `Prefer`, `Content-Type`, `traceparent`.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use chassis::prefer::Preferences;
use schemas::commands::{MAX_CONDITION_VERSIONS, Precondition, parse_if_match};
use schemas::idempotency::IdempotencyKey;
use schemas::problem::{Problem, ProblemKind};
use schemas::trace::is_traceparent;

use super::answers;

/// Maximum wait that `Prefer` can ask for; proxies time out after 30 seconds or more.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(25);
const TRACEPARENT: HeaderName = HeaderName::from_static(schemas::headers::TRACEPARENT.lower);

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

/// Reads the versions of the aggregate at which the command is to take effect.
pub(super) fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
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

/// Returns how long the client is willing to wait, if it says so.
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    Preferences::of(headers, MAX_WAIT).wait
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
pub(super) fn trace(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get(TRACEPARENT)?.to_str().ok()?;
    is_traceparent(value).then(|| value.into())
}
