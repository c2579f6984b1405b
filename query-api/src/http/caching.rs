//! `Cache-Control` and `Vary`: which caches may keep an answer, and for how long.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use chassis::prefer::PREFER;

use super::read_options::CONSISTENCY_TOKEN;

/// Sent to clients without special wishes. A client revalidates each time, because its own next command may change the
/// row. A shared cache serves the answer for one second, and for one more while it revalidates: a row that many clients
/// watch then costs one request a second, and none of them waits for it. The edge refreshes sooner, see
/// `deploy/edge/hot.lua`. A 404 is cached for as long: before a launch, that is the answer that many clients poll for.
const SHARED: HeaderValue = HeaderValue::from_static("public, max-age=0, s-maxage=1, stale-while-revalidate=1");
/// Sent for a request that names a token or a preference.
const OWN: HeaderValue = HeaderValue::from_static("private, no-cache");
/// Sent with data about a customer or an order, and in answer to a request that carries credentials.
const PERSONAL: HeaderValue = HeaderValue::from_static("private, no-store");
/// Sent with errors, which hold for one moment only.
const NOBODYS: HeaderValue = HeaderValue::from_static("no-store");
/// The headers of a request that an answer depends on, `Cache-Control` included.
const VARY: HeaderValue = HeaderValue::from_static("Consistency-Token, Prefer, Authorization, Cookie");

/// The kind of client, as far as it matters to caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// All such clients get the same answer.
    Anyone,
    /// The request names a token or a preference.
    Particular,
    /// The request carries credentials.
    Known,
}

impl Asker {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(header::AUTHORIZATION) || headers.contains_key(header::COOKIE) {
            Self::Known
        } else if headers.contains_key(CONSISTENCY_TOKEN) || headers.contains_key(PREFER) {
            Self::Particular
        } else {
            Self::Anyone
        }
    }
}

/// Marks an answer that names a customer or an order, or states that there is none: no cache may keep it.
pub(super) fn personal(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, PERSONAL);
    response
}

/// Sets `Cache-Control` and `Vary`, except on documents, which set their own and are the same for everyone.
pub(super) fn state(response: &mut Response, asker: Asker) {
    let found = matches!(response.status(), StatusCode::OK | StatusCode::NOT_MODIFIED | StatusCode::NOT_FOUND);
    let headers = response.headers_mut();
    let stated = headers.get(header::CACHE_CONTROL);
    if asker != Asker::Known && stated.is_some_and(|stated| *stated != PERSONAL) {
        return;
    }
    let cache_control = match asker {
        Asker::Known => PERSONAL,
        Asker::Anyone | Asker::Particular if stated.is_some() => PERSONAL,
        Asker::Particular if found => OWN,
        Asker::Anyone if found => SHARED,
        Asker::Anyone | Asker::Particular => NOBODYS,
    };
    headers.insert(header::CACHE_CONTROL, cache_control);
    headers.insert(header::VARY, VARY);
}
