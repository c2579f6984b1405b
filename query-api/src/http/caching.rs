//! Who may keep an answer, and for how long.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use chassis::prefer::PREFER;

use super::answers::CONSISTENCY_TOKEN;

/// A client asks each time: its own next command may have changed the row. What stands before us answers for a second,
/// and for one more while it asks us: a row that many watch then costs us one request a second, and nobody waits for it.
/// That there is no such row is kept as long: before a launch, that is what many watch.
const SHARED: HeaderValue = HeaderValue::from_static("public, max-age=0, s-maxage=1, stale-while-revalidate=1");
/// One client's, who wants to see something in particular.
const OWN: HeaderValue = HeaderValue::from_static("private, no-cache");
/// True of one moment.
const NOBODYS: HeaderValue = HeaderValue::from_static("no-store");
/// What an answer depends on besides its path.
const VARY: HeaderValue = HeaderValue::from_static("Consistency-Token, Prefer");

/// `is_own`: of the request, by [`is_own`]. An answer that says it itself is left as it is.
pub(super) fn state(response: &mut Response, is_own: bool) {
    if response.headers().contains_key(header::CACHE_CONTROL) {
        return;
    }
    let cache_control = match response.status() {
        StatusCode::OK | StatusCode::NOT_MODIFIED | StatusCode::NOT_FOUND if is_own => OWN,
        StatusCode::OK | StatusCode::NOT_MODIFIED | StatusCode::NOT_FOUND => SHARED,
        _ => NOBODYS,
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, cache_control);
    headers.insert(header::VARY, VARY);
}

/// Whether a request wants to see something in particular.
pub(super) fn is_own(headers: &HeaderMap) -> bool {
    headers.contains_key(CONSISTENCY_TOKEN) || headers.contains_key(PREFER)
}
