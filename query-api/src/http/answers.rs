//! Conversion of read results and errors to HTTP answers.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use schemas::headers;
use schemas::problem::ProblemKind;

use super::problems::problem;
use super::read_options::{CONSISTENCY_TOKEN, ReadOptions};
use crate::reads::ReadError;
use crate::row::Row;

const PARKED: HeaderName = HeaderName::from_static(headers::PARKED.lower);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("application/cloudevents-batch+json");
/// Capacity for all headers of an answer, including the border's, so that the map does not reallocate.
const ANSWER_HEADERS: usize = 8;

pub(super) fn refused(error: ReadError) -> Response {
    let kind = match &error {
        ReadError::NotYet { .. } => ProblemKind::NotYet,
        ReadError::TokenAhead => ProblemKind::TokenAhead,
        ReadError::Parked => ProblemKind::Parked,
        ReadError::TooManyWaiters | ReadError::Busy { .. } => ProblemKind::Overloaded,
        ReadError::Unavailable => ProblemKind::Unavailable,
    };
    let mut response = problem(kind, error.to_string());
    if let ReadError::NotYet { token } = error {
        put_token(response.headers_mut(), token);
    }
    response
}

/// Answers with a row, or with 304 if the client has it. For `age` see [`crate::reads::Shown`].
pub(super) fn row(row: Row, token: Option<String>, age: Option<Duration>, asked: &ReadOptions) -> Response {
    let tag = row.tag();
    let etag = HeaderValue::try_from(format!("\"{tag}\"")).expect("digits");
    let mut response = if asked.has(&tag) { StatusCode::NOT_MODIFIED.into_response() } else { json(row.body, JSON) };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag);
    put_token(headers, token);
    put_age(headers, age);
    response
}

/// Answers 404; `token` is the state of the log at which the row does not exist.
pub(super) fn no_row(detail: String, token: Option<String>, age: Option<Duration>) -> Response {
    let mut response = problem(ProblemKind::NotFound, detail);
    put_token(response.headers_mut(), token);
    put_age(response.headers_mut(), age);
    response
}

pub(super) fn list(body: String, token: Option<String>) -> Response {
    of_many(json(body.into(), JSON), token)
}

/// Sets `Stampede-Parked` if a record that the answer should show is parked.
pub(super) fn parked(mut response: Response, is_parked: bool) -> Response {
    if is_parked {
        response.headers_mut().insert(PARKED, HeaderValue::from_static("true"));
    }
    response
}

/// Answers with a page of events; `next` is the path of the following page.
pub(super) fn events(body: Vec<u8>, token: Option<String>, next: Option<String>) -> Response {
    let mut response = of_many(json(body.into(), EVENTS), token);
    if let Some(next) = next.and_then(|next| HeaderValue::try_from(format!("<{next}>; rel=\"next\"")).ok()) {
        response.headers_mut().insert(header::LINK, next);
    }
    response
}

fn of_many(mut response: Response, token: Option<String>) -> Response {
    put_token(response.headers_mut(), token);
    response
}

fn json(body: Bytes, content_type: HeaderValue) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().reserve(ANSWER_HEADERS);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn put_token(headers: &mut HeaderMap, token: Option<String>) {
    if let Some(token) = token.and_then(|token| HeaderValue::try_from(token).ok()) {
        headers.insert(CONSISTENCY_TOKEN, token);
    }
}

fn put_age(headers: &mut HeaderMap, age: Option<Duration>) {
    if let Some(age) = age {
        headers.insert(header::AGE, age.as_secs().into());
    }
}
