//! Cross-origin rules: the sites whose pages may send requests (CORS), and the requests that none may send (CSRF).

use std::str::FromStr;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const ANY: HeaderValue = HeaderValue::from_static("*");
const ORIGIN: HeaderValue = HeaderValue::from_static("Origin");
/// Seconds for which a browser may cache a preflight answer.
const MAX_AGE_SECS: HeaderValue = HeaderValue::from_static("600");
/// Media types that a page may send to any site without a preflight request.
const SIMPLE: [&str; 3] = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"];

/// Sites whose pages may send requests and read the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    None,
    Any,
    These(Vec<HeaderValue>),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an origin, such as https://shop.example or http://localhost:3000, nor a single *")]
pub struct OriginError(String);

/// Parses a list separated by commas, or `*`.
impl FromStr for Origins {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let origin = |text: &str| {
            let uri = text.parse::<Uri>().ok()?;
            let (scheme, authority) = (uri.scheme_str()?, uri.authority()?.as_str());
            // Browsers send origins without a trailing slash.
            let is_origin = format!("{scheme}://{authority}") == text && !authority.contains('@');
            is_origin.then(|| HeaderValue::from_str(text).ok()).flatten()
        };
        let named = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let these = named.map(|part| origin(part).ok_or_else(|| OriginError(part.to_owned())));
        these.collect::<Result<_, _>>().map(Self::These)
    }
}

impl Origins {
    /// Returns the value of `Access-Control-Allow-Origin`.
    pub(super) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            // The value is independent of the request, so a cached answer may be served to any site.
            Self::Any => Some(ANY),
            Self::These(these) => headers.get(header::ORIGIN).filter(|origin| these.contains(origin)).cloned(),
        }
    }

    /// Sets the CORS headers of an answer, and `Vary` if it depends on the origin.
    pub(super) fn state(&self, headers: &mut HeaderMap, allowed: Option<HeaderValue>, exposed: &HeaderValue) {
        if matches!(self, Self::These(_)) {
            headers.append(header::VARY, ORIGIN);
        }
        if let Some(origin) = allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }

    /// Answers an `OPTIONS` request, which may be a CORS preflight.
    pub(super) fn preflight(&self, allow: &'static str, sent: &HeaderValue, asked: &HeaderMap) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        if self.allowed(asked).is_some() && asked.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(allow));
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, sent.clone());
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECS);
        }
        response
    }

    /// Returns whether a request changes state, comes from a page of another site, and is of a kind that browsers send
    /// without a preflight.
    pub(super) fn is_foreign_form(&self, method: &Method, headers: &HeaderMap) -> bool {
        !method.is_safe() && is_simple(headers) && self.is_foreign(headers)
    }

    /// Returns whether a request comes from a page of another site that is not allowed. Programs send none of these
    /// headers.
    pub(crate) fn is_foreign(&self, headers: &HeaderMap) -> bool {
        let origin = headers.get(header::ORIGIN);
        match (self, origin) {
            (Self::Any, _) => return false,
            (Self::These(these), Some(origin)) if these.contains(origin) => return false,
            (Self::These(_) | Self::None, _) => {}
        }
        match headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes) {
            Some(b"same-origin" | b"none") => false,
            Some(_) => true,
            None => origin.is_some_and(|origin| !is_own(origin, headers)),
        }
    }
}

fn is_simple(headers: &HeaderMap) -> bool {
    let Some(sent) = headers.get(header::CONTENT_TYPE) else { return true };
    let media_type = sent.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    media_type.is_empty() || SIMPLE.iter().any(|simple| simple.eq_ignore_ascii_case(media_type))
}

/// Returns whether the origin is the requested host. A proxy may have dropped the port from `Host`.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let (Ok(origin), Some(Ok(host))) = (origin.to_str(), headers.get(header::HOST).map(HeaderValue::to_str)) else {
        return false;
    };
    let Some((_, authority)) = origin.split_once("://") else { return false };
    let without_port = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    authority.eq_ignore_ascii_case(host) || without_port.is_some_and(|(name, _)| name.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        pairs.collect()
    }

    #[test]
    fn origins_are_listed_as_browsers_write_them() {
        assert_eq!("*".parse(), Ok(Origins::Any));
        let these: Origins = "https://shop.example, http://localhost:3000".parse().unwrap();
        assert!(these.allowed(&headers(&[("origin", "http://localhost:3000")])).is_some());
        assert!(these.allowed(&headers(&[("origin", "http://localhost:3001")])).is_none());
        assert!(these.allowed(&headers(&[])).is_none());
        for text in ["shop.example", "https://shop.example/", "https://*", "https://a@b", "null", "*, https://a.b"] {
            let parsed = text.parse::<Origins>();
            assert!(parsed.is_err() || text == "https://*", "{text:?}: {parsed:?}");
        }
    }

    #[test]
    fn a_form_of_another_site_is_distinguished_from_programs_and_own_pages() {
        let is_foreign = |pairs: &[_]| Origins::None.is_foreign_form(&Method::POST, &headers(pairs));
        let host = ("host", "shop.example");
        assert!(!is_foreign(&[host]));
        assert!(is_foreign(&[host, ("origin", "http://evil.example")]));
        assert!(is_foreign(&[host, ("origin", "null")]));
        assert!(is_foreign(&[host, ("origin", "http://evil.example"), ("content-type", "Text/Plain; charset=utf-8")]));
        assert!(is_foreign(&[host, ("sec-fetch-site", "cross-site")]));
        assert!(is_foreign(&[host, ("sec-fetch-site", "same-site")]));
        assert!(!is_foreign(&[host, ("sec-fetch-site", "same-origin"), ("origin", "http://elsewhere")]));
        assert!(!is_foreign(&[host, ("sec-fetch-site", "none")]));
        assert!(!is_foreign(&[host, ("origin", "https://shop.example")]));
        assert!(!is_foreign(&[host, ("origin", "http://shop.example:8080")]));
        assert!(!is_foreign(&[host, ("origin", "http://evil.example"), ("content-type", "application/json")]));
        let allowed = Origins::These(vec![HeaderValue::from_static("http://evil.example")]);
        let sent = headers(&[host, ("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")]);
        assert!(!allowed.is_foreign_form(&Method::POST, &sent));
        assert!(!Origins::None.is_foreign_form(&Method::GET, &sent));
    }
}
