//! Refusals that cost little: before a route is looked for, and anything is made for one.

use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderMap, Method, Request};
use axum::response::Response;

/// Looks at each request that the border's other rules let pass, its method, its path and its headers. The default lets all
/// pass.
#[derive(Clone, Default)]
pub struct Gate(Option<Arc<Rule>>);

type Rule = dyn Fn(&Method, &str, &HeaderMap) -> Option<Response> + Send + Sync;

impl Gate {
    /// `rule`: returns the answer where there is no need to ask the routes. The body is not read then.
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
