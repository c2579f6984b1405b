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

#[cfg(test)]
mod tests {
    use axum::body::HttpBody as _;
    use schemas::token::LogId;

    use super::*;
    use crate::positions::{Log, Positions};

    fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    fn asked(if_none_match: &'static str) -> ReadOptions {
        let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(if_none_match))]);
        ReadOptions::parse(&headers, Log { id: LogId::of_nonce(1), partitions: 1 }, &Positions::default()).unwrap()
    }

    #[test]
    fn a_client_that_has_the_row_gets_its_headers_without_the_body() {
        let response = |if_none_match| {
            let row = Row { version: 7, generation: 2, body: Bytes::from_static(b"{}") };
            super::row(row, Some("token".to_owned()), Some(Duration::from_millis(6_900)), &asked(if_none_match))
        };
        for (if_none_match, status, is_empty) in
            [("\"7-2\"", StatusCode::NOT_MODIFIED, true), ("\"7\"", StatusCode::OK, false)]
        {
            let response = response(if_none_match);
            assert_eq!((response.status(), response.body().is_end_stream()), (status, is_empty));
            let told = ["etag", "consistency-token", "age"].map(|name| header(&response, name));
            assert_eq!(told, [Some("\"7-2\""), Some("token"), Some("6")]);
        }
    }

    #[test]
    fn a_refusal_that_a_retry_can_mend_is_unavailable_and_says_when_to_retry() {
        let token = Some("token".to_owned());
        for error in [
            ReadError::NotYet { token },
            ReadError::Parked,
            ReadError::TooManyWaiters,
            ReadError::Busy { server: "redis" },
            ReadError::Unavailable,
        ] {
            let response = refused(error.clone());
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{error}");
            assert!(header(&response, "retry-after").is_some(), "{error}");
            let is_not_yet = matches!(error, ReadError::NotYet { .. });
            assert_eq!(header(&response, "consistency-token"), is_not_yet.then_some("token"), "{error}");
        }
        let ahead = refused(ReadError::TokenAhead);
        assert_eq!((ahead.status(), header(&ahead, "retry-after")), (StatusCode::BAD_REQUEST, None));
    }

    #[test]
    fn a_missing_row_is_answered_with_the_position_at_which_it_is_missing() {
        let response = no_row("there is none".to_owned(), Some("token".to_owned()), None);
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(["consistency-token", "age"].map(|name| header(&response, name)), [Some("token"), None]);
    }

    #[test]
    fn an_answer_says_whether_it_lacks_parked_records() {
        let told = |is_parked| header(&parked(list("{}".to_owned(), None), is_parked), "stampede-parked").is_some();
        assert_eq!([told(true), told(false)], [true, false]);
    }

    #[test]
    fn a_page_of_events_links_to_the_next_one_if_there_is_one() {
        let link = |next: Option<&str>| {
            let response = events(b"[]".to_vec(), None, next.map(str::to_owned));
            header(&response, "link").map(str::to_owned)
        };
        assert_eq!(link(Some("/v1/x?after=2")).as_deref(), Some("</v1/x?after=2>; rel=\"next\""));
        assert_eq!(link(None), None);
    }
}
