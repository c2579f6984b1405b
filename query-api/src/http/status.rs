//! `GET /v1/status` for clients, and `/status` on the admin listener for operators.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use schemas::problem::ProblemKind;

use super::parameters::Parameters;
use super::problems::{invalid, problem};
use crate::status::{Latest, Overview};

/// Time that a request waits for the first overview of an instance that is just starting.
const STARTS_WITHIN: Duration = Duration::from_secs(5);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Answers with the status for clients.
pub(super) async fn public(Extension(latest): Extension<Latest>, parameters: Parameters) -> Response {
    if let Err(detail) = parameters.end() {
        return invalid(detail);
    }
    answer(latest, |overview| overview.public.clone()).await
}

/// Returns the route for operators.
pub(crate) fn of_admin(latest: Latest) -> Router {
    let detailed = async |State(latest): State<Latest>| answer(latest, |overview| overview.detailed.clone()).await;
    Router::new().route("/status", get(detailed)).with_state(latest)
}

async fn answer(mut latest: Latest, of: impl Fn(&Overview) -> Bytes) -> Response {
    let known = tokio::time::timeout(STARTS_WITHIN, latest.wait_for(Option::is_some)).await;
    let overview: Option<Arc<Overview>> = known.ok().and_then(|known| known.ok()?.clone());
    match overview {
        Some(overview) => {
            ([(header::CONTENT_TYPE, JSON), (header::CACHE_CONTROL, NO_STORE)], of(&overview)).into_response()
        }
        None => problem(ProblemKind::Unavailable, "the status is not known yet"),
    }
}
