//! How many requests a listener works on at once; more are refused before their bodies are read.
//!
//! Refusing costs little and waiting costs latency: what is let in keeps its own however many come.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::Response;
use schemas::problem::{Problem, ProblemKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::commands::key;
use super::{AppState, answers};

/// Single commands: what two cores with everything on them answer in 150 ms, and a machine of its own in 40 ms.
const MAX_COMMANDS: usize = 2048;
/// Batches; each may hold its whole body.
const MAX_BATCHES: usize = 32;

/// Of one listener.
#[derive(Clone)]
pub(super) struct Admission {
    commands: Arc<Semaphore>,
    batches: Arc<Semaphore>,
}

impl Default for Admission {
    fn default() -> Self {
        Self { commands: Arc::new(Semaphore::new(MAX_COMMANDS)), batches: Arc::new(Semaphore::new(MAX_BATCHES)) }
    }
}

/// A command that was let in; another one may when it is dropped.
pub(super) struct UnderWay(#[allow(dead_code, reason = "it is held, not read")] OwnedSemaphorePermit);

/// The same for a batch.
pub(super) struct BatchUnderWay(#[allow(dead_code, reason = "it is held, not read")] OwnedSemaphorePermit);

impl FromRequestParts<AppState> for UnderWay {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Response> {
        let permit = state.admission.commands.clone().try_acquire_owned();
        permit.map(Self).map_err(|_| {
            let refusal = refuse(state, "commands");
            match key(&parts.headers) {
                Ok(key) => answers::with_key(refusal, &key),
                Err(problem) => answers::problem(&problem),
            }
        })
    }
}

impl FromRequestParts<AppState> for BatchUnderWay {
    type Rejection = Response;

    async fn from_request_parts(_: &mut Parts, state: &AppState) -> Result<Self, Response> {
        state.admission.batches.clone().try_acquire_owned().map(Self).map_err(|_| refuse(state, "batches"))
    }
}

fn refuse(state: &AppState, what: &'static str) -> Response {
    state.metrics.refused(what);
    answers::problem(&Problem::new(ProblemKind::Overloaded, format!("too many {what} are under way; nothing was done")))
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use chassis::env::Secret;
    use chassis::telemetry::Telemetry;
    use tokio::sync::watch;

    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn more_commands_than_may_be_under_way_are_refused_and_keep_their_key() {
        let telemetry = Telemetry::new("test").unwrap();
        let metrics = Arc::new(Metrics::new(&telemetry));
        let state = AppState::new(watch::channel(None).1, metrics, Secret::from("token"));
        let (mut parts, ()) = Request::builder().header("idempotency-key", "k").body(()).unwrap().into_parts();
        let mut under_way = Vec::new();
        let refused = loop {
            match UnderWay::from_request_parts(&mut parts, &state).await {
                Ok(admitted) => under_way.push(admitted),
                Err(refused) => break refused,
            }
        };
        assert_eq!(under_way.len(), MAX_COMMANDS);
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.headers()["idempotency-key"], "k");
        assert!(refused.headers().contains_key("retry-after"));
        assert!(BatchUnderWay::from_request_parts(&mut parts, &state).await.is_ok(), "batches have room of their own");
        under_way.pop();
        assert!(UnderWay::from_request_parts(&mut parts, &state).await.is_ok());
    }
}
