//! The border of a listener: rules that apply to every request and answer, independently of the routes behind it.
//!
//! A connection calls the border directly, not as a layer of the router, so that a request does not pay for a boxed
//! service.
//!
//! Invariant: every answer carries `X-Request-Id`, and every one with status 400 or above is a problem (RFC 9457). The
//! border completes bare statuses: those of handlers, of the router for unknown paths and methods, of rejecting
//! extractors, of panics, and of hyper for a head that it cannot parse.
//!
//! `tower-http` covers parts of this, but its `CorsLayer` answers every `OPTIONS` with 200 and no `Allow`, even for
//! unknown paths, and boxes each answer's body.

mod gate;
mod origins;
mod request_id;

use std::panic::AssertUnwindSafe;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::response::Response;
use futures_util::FutureExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

pub use gate::Gate;
pub use origins::Origins;
pub use request_id::{RequestId, request_id};

pub(crate) use request_id::X_REQUEST_ID;

use request_id::REQUEST_ID;

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// Seconds after which a refused client may retry.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
/// Capacity for all headers of a problem, including the connection's, so that the map does not reallocate.
const PROBLEM_HEADERS: usize = 12;

/// The rules of one listener.
#[derive(Debug, Clone)]
pub struct Border {
    /// Serializes the problem of a status as JSON, with its detail and the request's id.
    pub problem: fn(u16, &str, Option<&str>) -> Vec<u8>,
    /// Returns the value of `Allow` for a path, or `None` if the path does not exist.
    pub allow: fn(&str) -> Option<&'static str>,
    /// Other sites whose pages may send requests.
    pub origins: Origins,
    /// Request headers that these pages may send, as a list with commas.
    pub sent: HeaderValue,
    /// Response headers that these pages may read.
    pub exposed: HeaderValue,
    /// Early refusals, before routing.
    pub gate: Gate,
}

impl Border {
    /// Returns a border with plain problems, for routers that have no description of their own.
    pub fn plain() -> Self {
        let (sent, exposed) = (HeaderValue::from_static("Content-Type, X-Request-Id"), X_REQUEST_ID.into());
        let (origins, gate) = (Origins::None, Gate::default());
        Self { problem: plain_problem, allow: |_| None, origins, sent, exposed, gate }
    }

    /// Answers a request through the router, applying the rules.
    pub(crate) async fn answer<B>(&self, router: &TowerToHyperService<Router>, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let (id, sent) = RequestId::of(request.headers());
        let origin = self.origins.allowed(request.headers());
        let mut response = REQUEST_ID.scope(id, self.answer_inside(router, request)).await;
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, sent.unwrap_or_else(|| id.to_header()));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        self.origins.state(headers, origin, &self.exposed);
        response
    }

    async fn answer_inside<B>(&self, router: &TowerToHyperService<Router>, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        if let Err(detail) = check_path(uri.path()) {
            return self.refuse(StatusCode::BAD_REQUEST, detail);
        }
        if method == Method::OPTIONS
            && let Some(allow) = (self.allow)(uri.path())
        {
            return self.origins.preflight(allow, &self.sent, request.headers());
        }
        if self.origins.is_foreign_form(&method, request.headers()) {
            let detail = "a page of another site must send this with Content-Type: application/json";
            return self.refuse(StatusCode::FORBIDDEN, detail);
        }
        if let Some(refusal) = self.gate.refuse(&request) {
            return refusal;
        }
        // Locks that a panicking handler held are poisoned; their next users recover them by their own rules.
        match AssertUnwindSafe(router.call(request)).catch_unwind().await {
            Ok(Ok(response)) => self.complete(response, &method, &uri),
            // The panic hook has logged it.
            Err(_) => self.refuse(StatusCode::INTERNAL_SERVER_ERROR, "the request failed; see the server's log"),
        }
    }

    /// Replaces a bare status, or a library's plain text, by a problem. Headers that a handler set are kept.
    fn complete(&self, response: Response, method: &Method, uri: &Uri) -> Response {
        let status = response.status();
        if !(status.is_client_error() || status.is_server_error()) || !is_bare(&response) {
            return response;
        }
        let takes = |allow: &str| allow.split(", ").any(|name| name == method.as_str());
        let is_of_route = matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
        let allow = if is_of_route { (self.allow)(uri.path()) } else { None };
        let mut refusal = match allow {
            Some(allow) if !takes(allow) => {
                let mut refusal = self.refuse(
                    StatusCode::METHOD_NOT_ALLOWED,
                    &format!("{method} is not allowed; the path allows {allow}"),
                );
                refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
                refusal
            }
            Some(_) => self.refuse(StatusCode::NOT_FOUND, NO_ROUTE),
            None => self.refuse(status, detail(status)),
        };
        for (name, value) in response.headers() {
            let is_of_body = *name == header::CONTENT_TYPE || *name == header::CONTENT_LENGTH;
            // A path that does not exist allows no methods.
            let is_void = *name == header::ALLOW && refusal.status() == StatusCode::NOT_FOUND;
            if !is_of_body && !is_void && (!refusal.headers().contains_key(name) || *name == header::CACHE_CONTROL) {
                refusal.headers_mut().insert(name, value.clone());
            }
        }
        refusal
    }

    fn refuse(&self, status: StatusCode, detail: &str) -> Response {
        let mut response = problem(status.as_u16(), |id| (self.problem)(status.as_u16(), detail, id));
        response.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
        response
    }

    /// Completes the head with which hyper refuses a request that it cannot parse: `HTTP/1.1 400 Bad Request`, without
    /// a body. Such a request has no known fields, not even the id that its client sent.
    pub(crate) fn complete_refusal(&self, bare: &str) -> Vec<u8> {
        let status = bare.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(400);
        let detail = match status {
            414 => "the request line is too long",
            431 => "the head is too large or has too many headers",
            _ => "the request line or a header is malformed",
        };
        let id = RequestId::random();
        let problem = (self.problem)(status, detail, Some(id.as_str()));
        let lines = bare.split("\r\n").filter(|line| !line.is_empty() && !line.starts_with("content-length:"));
        let mut answer: String = lines.flat_map(|line| [line, "\r\n"]).collect();
        let headers = [
            (header::CONTENT_TYPE, PROBLEM),
            (header::CONTENT_LENGTH, problem.len().into()),
            (header::CACHE_CONTROL, NO_STORE),
            (header::X_CONTENT_TYPE_OPTIONS, NOSNIFF),
            (X_REQUEST_ID, id.to_header()),
        ];
        for (name, value) in headers {
            let value = value.to_str().expect("header values are ASCII");
            answer.extend([name.as_str(), ": ", value, "\r\n"]);
        }
        answer.push_str("\r\n");
        [answer.into_bytes(), problem].concat()
    }
}

const NO_ROUTE: &str = "the path names no route, aggregate or command; /openapi.json lists them";

fn detail(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => NO_ROUTE,
        StatusCode::METHOD_NOT_ALLOWED => "the path does not allow this method; Allow lists those that it does",
        StatusCode::PAYLOAD_TOO_LARGE => "the body is too large for this path",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "the path does not accept this type of body",
        status if status.is_server_error() => "the request failed; see the server's log",
        _ => "the request is not valid for this path",
    }
}

/// Returns a problem as an answer; `json` serializes it with the request's id. A 503 carries `Retry-After`.
pub fn problem(status: u16, json: impl FnOnce(Option<&str>) -> Vec<u8>) -> Response {
    let id = request_id();
    let mut response = Response::new(Body::from(json(id.as_ref().map(RequestId::as_str))));
    *response.status_mut() = StatusCode::from_u16(status).expect("a problem's status is an HTTP status");
    response.headers_mut().reserve(PROBLEM_HEADERS);
    response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM);
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

/// Returns whether an answer has no body of its own: none, or a library's plain text.
fn is_bare(response: &Response) -> bool {
    let media_type = response.headers().get(header::CONTENT_TYPE);
    media_type.is_none_or(|media_type| media_type.as_bytes().starts_with(b"text/plain"))
}

/// Returns a problem without a type of its own as an answer, for operators.
pub fn plain(status: StatusCode, detail: &str) -> Response {
    problem(status.as_u16(), |id| plain_problem(status.as_u16(), detail, id))
}

/// Serializes a problem without a type of its own.
fn plain_problem(status: u16, detail: &str, request_id: Option<&str>) -> Vec<u8> {
    let known = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let problem = serde_json::json!({
        "type": "about:blank",
        "title": known.unwrap_or("The request failed"),
        "status": status,
        "detail": detail,
        "request_id": request_id,
    });
    problem.to_string().into_bytes()
}

/// Refuses paths whose ids cannot be valid, which an extractor would refuse in its own words.
fn check_path(path: &str) -> Result<(), &'static str> {
    if !path.contains('%') {
        return Ok(());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let escaped = if byte == b'%' { behind.split_first_chunk::<2>() } else { None };
        match escaped
            .and_then(|(digits, behind)| Some((u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?, behind)))
        {
            Some((escaped, behind)) => {
                bytes.push(escaped);
                rest = behind;
            }
            None => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    let text = str::from_utf8(&bytes).map_err(|_| "the path is not valid UTF-8")?;
    if text.contains(char::is_control) { Err("an id must not contain control characters") } else { Ok(()) }
}

#[cfg(test)]
mod tests;
