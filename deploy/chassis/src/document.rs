//! Documents embedded in the build, the same bytes for every client.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get};

/// Caching of documents: they change only with a deployment, so clients need not revalidate for a few minutes.
const CACHE_CONTROL: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// An embedded document with its headers.
#[derive(Debug)]
struct Document {
    media_type: HeaderValue,
    etag: HeaderValue,
    /// `Content-Security-Policy`, for pages.
    policy: Option<HeaderValue>,
    body: Bytes,
}

/// Returns a route that answers with these bytes, or with 304 if the client has them.
pub fn serve<S: Clone + Send + Sync + 'static>(media_type: &'static str, body: impl Into<Bytes>) -> MethodRouter<S> {
    route(media_type, None, body.into())
}

/// Returns a route that answers with a page under a `Content-Security-Policy`.
pub fn serve_page<S: Clone + Send + Sync + 'static>(policy: &'static str, body: impl Into<Bytes>) -> MethodRouter<S> {
    route("text/html; charset=utf-8", Some(HeaderValue::from_static(policy)), body.into())
}

fn route<S: Clone + Send + Sync + 'static>(
    media_type: &'static str,
    policy: Option<HeaderValue>,
    body: Bytes,
) -> MethodRouter<S> {
    // `DefaultHasher::new` has fixed keys, so all instances of one build agree.
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let etag = HeaderValue::try_from(format!("\"{:016x}\"", hasher.finish())).expect("hexadecimal digits");
    let document = Document { media_type: HeaderValue::from_static(media_type), etag, policy, body };
    get(answer).with_state(Arc::new(document))
}

async fn answer(State(document): State<Arc<Document>>, headers: HeaderMap) -> Response {
    let mut response = if document.is_known(&headers) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut response = Response::new(Body::from(document.body.clone()));
        response.headers_mut().insert(header::CONTENT_TYPE, document.media_type.clone());
        response
    };
    response.headers_mut().insert(header::ETAG, document.etag.clone());
    response.headers_mut().insert(header::CACHE_CONTROL, CACHE_CONTROL);
    if let Some(policy) = &document.policy {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy.clone());
    }
    response
}

impl Document {
    /// Returns whether the client has this version. Tags are compared weakly, as RFC 9110 requires here.
    fn is_known(&self, headers: &HeaderMap) -> bool {
        let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == self.etag.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(value))])
    }

    #[tokio::test]
    async fn a_client_that_has_the_document_gets_304() {
        let media_type = HeaderValue::from_static("text/plain");
        let (etag, policy) = (HeaderValue::from_static("\"a\""), Some(HeaderValue::from_static("default-src 'none'")));
        let document = Arc::new(Document { media_type, etag, policy, body: Bytes::from("words") });
        for (value, status) in [("\"b\"", 200), ("\"b\", W/\"a\"", 304), ("\"a\"", 304), ("*", 304), ("a", 200)] {
            let response = answer(State(document.clone()), asked(value)).await;
            assert_eq!(response.status(), status, "{value}");
            assert_eq!(response.headers()["etag"], "\"a\"");
            assert_eq!(response.headers()["cache-control"], "public, max-age=300");
            assert_eq!(response.headers()["content-security-policy"], "default-src 'none'");
        }
        assert_eq!(answer(State(document), HeaderMap::new()).await.headers()["content-type"], "text/plain");
    }
}
