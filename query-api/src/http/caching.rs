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

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    const FOUND: [StatusCode; 3] = [StatusCode::OK, StatusCode::NOT_MODIFIED, StatusCode::NOT_FOUND];
    const FAILED: [StatusCode; 3] =
        [StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE, StatusCode::INTERNAL_SERVER_ERROR];
    const ASKERS: [Asker; 3] = [Asker::Anyone, Asker::Particular, Asker::Known];

    fn answer(status: StatusCode) -> Response {
        let mut response = Response::default();
        *response.status_mut() = status;
        response
    }

    /// Returns the `Cache-Control` of an answer, and whether it varies by the request's headers.
    fn stated(mut response: Response, asker: Asker) -> (HeaderValue, bool) {
        state(&mut response, asker);
        let headers = response.headers();
        (headers[header::CACHE_CONTROL].clone(), headers.get(header::VARY) == Some(&VARY))
    }

    #[test]
    fn the_headers_of_a_request_determine_its_asker() {
        let asker = |name: HeaderName| Asker::of(&HeaderMap::from_iter([(name, HeaderValue::from_static("x"))]));
        assert_eq!(Asker::of(&HeaderMap::new()), Asker::Anyone);
        assert_eq!(asker(header::IF_NONE_MATCH), Asker::Anyone);
        assert_eq!([asker(PREFER), asker(CONSISTENCY_TOKEN)], [Asker::Particular; 2]);
        assert_eq!([asker(header::AUTHORIZATION), asker(header::COOKIE)], [Asker::Known; 2]);
    }

    #[test]
    fn only_an_answer_to_a_request_without_wishes_is_shared() {
        for status in FOUND {
            assert_eq!(stated(answer(status), Asker::Anyone), (SHARED, true), "{status}");
            assert_eq!(stated(answer(status), Asker::Particular), (OWN, true), "{status}");
            assert_eq!(stated(answer(status), Asker::Known), (PERSONAL, true), "{status}");
        }
    }

    #[test]
    fn no_cache_keeps_an_error() {
        for status in FAILED {
            assert_eq!(stated(answer(status), Asker::Anyone), (NOBODYS, true), "{status}");
            assert_eq!(stated(answer(status), Asker::Particular), (NOBODYS, true), "{status}");
            assert_eq!(stated(answer(status), Asker::Known), (PERSONAL, true), "{status}");
        }
    }

    #[test]
    fn no_cache_keeps_personal_data_whoever_asks_and_whatever_the_answer() {
        for status in [FOUND, FAILED].concat() {
            for asker in ASKERS {
                assert_eq!(stated(personal(answer(status)), asker), (PERSONAL, true), "{status} {asker:?}");
            }
        }
    }

    #[test]
    fn a_document_states_its_own_caching_except_to_a_request_with_credentials() {
        let own = HeaderValue::from_static("public, max-age=300");
        let document = || {
            let mut response = answer(StatusCode::OK);
            response.headers_mut().insert(header::CACHE_CONTROL, own.clone());
            response
        };
        assert_eq!(stated(document(), Asker::Anyone), (own.clone(), false));
        assert_eq!(stated(document(), Asker::Particular), (own.clone(), false));
        assert_eq!(stated(document(), Asker::Known), (PERSONAL, true));
    }
}
