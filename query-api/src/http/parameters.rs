//! Parsing of a request's query parameters.

use std::collections::BTreeMap;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::Response;

use super::problems::invalid;

/// The query parameters; each may occur once, and unknown ones are refused. Names that begin with `_` are ignored: some
/// clients append such a parameter to bypass caches.
#[derive(Debug)]
pub(super) struct Parameters(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        Self::parse(parts.uri.query().unwrap_or_default()).map_err(invalid)
    }
}

/// Percent-decodes a part of the query. Returns `None` if an escape is malformed or the result is not UTF-8.
fn decoded(part: &str) -> Option<String> {
    let mut bytes = part.bytes();
    let mut text = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        text.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(text).ok()
}

impl Parameters {
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut parameters = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(known) = decoded(name) else {
                return Err(format!("the name of the parameter {name:?} is not percent-encoded UTF-8"));
            };
            let Some(value) = decoded(value) else {
                return Err(format!("{known}: the value is not percent-encoded UTF-8"));
            };
            if !known.starts_with('_') && parameters.insert(known, value).is_some() {
                return Err(format!("the parameter {name:?} is given twice"));
            }
        }
        Ok(Self(parameters))
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a cursor. An empty value counts as absent: some clients send the bare name for the first page.
    pub(super) fn take_after(&mut self) -> Option<String> {
        self.take("after").filter(|text| !text.is_empty())
    }

    /// Takes the page size, at most `most`.
    pub(super) fn take_limit(&mut self, default: i64, most: i64) -> Result<i64, String> {
        let Some(text) = self.take("limit") else { return Ok(default) };
        let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
        limit.ok_or_else(|| format!("limit must be between 1 and {most}"))
    }

    /// Refuses parameters that were not taken: a mistyped filter would otherwise return other rows than intended.
    pub(super) fn end(self) -> Result<(), String> {
        match self.0.into_keys().next() {
            Some(name) => Err(format!("unknown parameter {name:?}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[tokio::test]
    async fn a_parameter_that_is_given_twice_or_is_unknown_is_refused() {
        let parameters = async |uri: &str| {
            let (mut parts, ()) = Request::builder().uri(uri).body(()).unwrap().into_parts();
            Parameters::from_request_parts(&mut parts, &()).await
        };
        assert!(parameters("/?limit=1&limit=2").await.is_err());
        let mut some = parameters("/?limit=5&after=a%7Eb&x=").await.unwrap();
        assert_eq!(some.take_limit(50, 1000), Ok(5));
        assert_eq!(some.take("after").as_deref(), Some("a~b"));
        assert!(some.end().is_err());
        for uri in ["/", "/?", "/?&", "/?after=", "/?after", "/?_=1784&_=1785"] {
            let mut none = parameters(uri).await.unwrap();
            assert_eq!(none.take_after(), None, "{uri}");
            assert_eq!(none.end(), Ok(()), "{uri}");
        }
        for uri in ["/?limit=0", "/?limit=1001", "/?limit=-1", "/?limit=x", "/?limit="] {
            assert!(parameters(uri).await.unwrap().take_limit(50, 1000).is_err(), "{uri}");
        }
    }

    #[test]
    fn malformed_percent_encoding_is_refused_and_names_the_parameter() {
        let taken = |query: &str, name: &str| Parameters::parse(query).map(|mut parameters| parameters.take(name));
        assert_eq!(taken("after=a+b%20%c3%A4&x", "after"), Ok(Some("a b ä".to_owned())));
        for (query, named) in [
            ("after=%", "after: "),
            ("after=%4", "after: "),
            ("after=%zz", "after: "),
            ("after=%+4", "after: "),
            ("after=%ff", "after: "),
            ("limit=5&order=%C3", "order: "),
            ("%ff=1", "\"%ff\""),
            ("a%66ter=1&after=2", "is given twice"),
        ] {
            let error = taken(query, "after").unwrap_err();
            assert!(error.contains(named), "{query}: {error}");
        }
    }
}
