//! Methods that each path of the API supports. Each tier also answers for the paths of the other.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::OPENAPI;
use crate::aggregate::type_routed;
use crate::commands::contract_named;

const WRITTEN: &str = "OPTIONS, POST";

/// Routes from the OpenAPI document, so that it and `Allow` agree.
static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let described: Described = serde_json::from_str(OPENAPI).expect("a test compares the document with the types");
    described.paths.iter().map(|(path, methods)| Route::of(path, methods)).collect()
});

#[derive(Deserialize)]
struct Described {
    paths: BTreeMap<String, BTreeMap<String, IgnoredAny>>,
}

struct Route {
    parts: Vec<Part>,
    allow: &'static str,
}

/// Segment of a path. A parameter matches any non-empty text between its fixed prefix and suffix.
enum Part {
    Named(String),
    Parameter { before: String, behind: String },
}

/// Returns the value of `Allow` for a path; `None` if the API has no such path.
pub fn allow(path: &str) -> Option<&'static str> {
    ROUTES.iter().find(|route| route.matches(path)).map(|route| route.allow)
}

/// Returns the value of `Allow` for a path of the internal listener, which also serves undocumented commands.
pub fn allow_internal(path: &str) -> Option<&'static str> {
    allow(path).or_else(|| {
        let mut parts = path.strip_prefix("/v1/")?.split('/');
        let (aggregates, id, command) = (parts.next()?, parts.next()?, parts.next()?);
        let aggregate = type_routed(aggregates)?;
        let is_known = contract_named(aggregate, command).is_some();
        (is_known && !id.is_empty() && parts.next().is_none()).then_some(WRITTEN)
    })
}

impl Route {
    fn of(path: &str, methods: &BTreeMap<String, IgnoredAny>) -> Self {
        let allow = match (methods.contains_key("get"), methods.contains_key("post")) {
            (true, true) => "GET, HEAD, OPTIONS, POST",
            (true, false) => "GET, HEAD, OPTIONS",
            (false, _) => WRITTEN,
        };
        Self { parts: path.split('/').map(Part::of).collect(), allow }
    }

    fn matches(&self, path: &str) -> bool {
        let mut given = path.split('/');
        self.parts.iter().all(|part| given.next().is_some_and(|given| part.takes(given))) && given.next().is_none()
    }
}

impl Part {
    fn of(text: &str) -> Self {
        match text.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?.1))) {
            Some((before, behind)) => Self::Parameter { before: before.to_owned(), behind: behind.to_owned() },
            None => Self::Named(text.to_owned()),
        }
    }

    fn takes(&self, given: &str) -> bool {
        match self {
            Self::Named(name) => name == given,
            Self::Parameter { before, behind } => {
                let inside = given.strip_prefix(before.as_str()).and_then(|rest| rest.strip_suffix(behind.as_str()));
                inside.is_some_and(|inside| !inside.is_empty())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_names_the_methods_of_either_tier() {
        for path in ["/v1/products/cd", "/v1/products/cd/history", "/v1/revenue", "/v1/views/product", "/openapi.json"]
        {
            assert_eq!(allow(path), Some("GET, HEAD, OPTIONS"), "{path}");
        }
        assert_eq!(allow("/schemas/order.placed.v1.json"), Some("GET, HEAD, OPTIONS"));
        assert_eq!(allow("/v1/products/cd/reserve"), Some("OPTIONS, POST"));
        assert_eq!(allow("/v1/commands"), Some("OPTIONS, POST"));
        for path in ["/", "/v1", "/v1/", "/v1/products//reserve", "/v1/products/cd/commit", "/v1/baskets/b/fill", "/x"]
        {
            assert_eq!(allow(path), None, "{path}");
        }
    }

    #[test]
    fn the_internal_listener_also_serves_undocumented_commands() {
        for path in ["/v1/products/cd/commit", "/v1/orders/o/confirm-line", "/v1/products/cd/reserve", "/v1/commands"] {
            assert_eq!(allow_internal(path), Some("OPTIONS, POST"), "{path}");
        }
        assert_eq!(allow_internal("/v1/products/cd"), Some("GET, HEAD, OPTIONS"));
        for path in ["/v1/products//commit", "/v1/products/cd/commit/x", "/v1/sales/s/commit/", "/v1/products/cd/paint"]
        {
            assert_eq!(allow_internal(path), None, "{path}");
        }
    }
}
