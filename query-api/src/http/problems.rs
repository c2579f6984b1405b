//! Problems as answers.

use std::borrow::Cow;

use axum::response::Response;
use chassis::border;
use schemas::problem::{Problem, ProblemKind};

pub(super) fn problem(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Response {
    let problem = Problem::new(kind, detail);
    border::problem(problem.status, |id| problem.of_request(id).to_json())
}

/// Refuses a request that is not valid; `detail` says why.
pub(super) fn invalid(detail: impl Into<Cow<'static, str>>) -> Response {
    problem(ProblemKind::InvalidRequest, detail)
}
