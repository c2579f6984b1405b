//! Who may keep an answer, and for how long.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use chassis::prefer::PREFER;

use super::answers::CONSISTENCY_TOKEN;

/// A client asks each time: its own next command may have changed the row. A shared cache answers for a second, and for
/// one more while it asks us: a row that many watch then costs us one request a second, and nobody waits for it. The edge
/// asks sooner, see `deploy/edge/hot.lua`.
/// That there is no such row is kept as long: before a launch, that is what many watch.
const SHARED: HeaderValue = HeaderValue::from_static("public, max-age=0, s-maxage=1, stale-while-revalidate=1");
/// One client's, who wants to see something in particular.
const OWN: HeaderValue = HeaderValue::from_static("private, no-cache");
/// Names a customer or an order, or answers somebody who says who he is.
const PERSONAL: HeaderValue = HeaderValue::from_static("private, no-store");
/// True of one moment.
const NOBODYS: HeaderValue = HeaderValue::from_static("no-store");
/// The headers of a request that an answer depends on, `Cache-Control` included.
const VARY: HeaderValue = HeaderValue::from_static("Consistency-Token, Prefer, Authorization, Cookie");

/// Whose a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// Everybody gets the same.
    Anyone,
    /// One who wants to see something in particular.
    Particular,
    /// One who says who he is.
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

/// Marks an answer that names a customer or an order, or says that there is none: nobody may keep it.
pub(super) fn personal(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, PERSONAL);
    response
}

/// States it where the answer does not do so itself. A document does, and is the same for everyone.
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
