//! Cheap refusals, before routing and before any allocation for a route.

use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderMap, Method, Request};
use axum::response::Response;

/// A rule that sees the method, path and headers of each request that passes the border's other rules. By default every
/// request passes.
#[derive(Clone, Default)]
pub struct Gate(Option<Arc<Rule>>);

type Rule = dyn Fn(&Method, &str, &HeaderMap) -> Option<Response> + Send + Sync;

impl Gate {
    /// Creates a gate; `rule` returns an answer if the request need not reach the routes. The body is then not read.
    pub fn new(rule: impl Fn(&Method, &str, &HeaderMap) -> Option<Response> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(rule)))
    }

    pub(super) fn refuse<B>(&self, request: &Request<B>) -> Option<Response> {
        self.0.as_ref()?(request.method(), request.uri().path(), request.headers())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Gate" } else { "no gate" })
    }
}
