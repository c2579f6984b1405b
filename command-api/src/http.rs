//! The two listeners: one for clients, one for other instances and for commands that finish what an event began.

mod admission;
pub(crate) mod admin;
mod answers;
mod batch;
mod commands;
mod gate;
mod problems;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use chassis::border::{Border, Gate, Origins};
use chassis::document;
use chassis::env::Secret;
use schemas::contracts::{ASYNCAPI, OPENAPI, routes};
use schemas::problem::{Problem, ProblemKind};
use schemas::token::LogId;
use tokio::sync::watch;

use admission::Admission;

use crate::dispatcher::Dispatcher;
use crate::metrics::Metrics;
use crate::peers;

/// The log, and the way to the owners of its partitions.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    pub(crate) dispatcher: Arc<Dispatcher>,
}

/// Shared by all requests; axum clones it several times for each.
pub(crate) type AppState = Arc<HttpState>;

pub(crate) struct HttpState {
    /// `None` until the log has its first claim: then nothing can be answered yet.
    log: watch::Receiver<Option<Log>>,
    metrics: Arc<Metrics>,
    service_token: Secret,
    admission: Admission,
}

/// How long a request waits for an instance that has just begun to listen.
const STARTS_WITHIN: Duration = Duration::from_secs(3);

/// Which listener a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    Public,
    Internal,
}

/// The rules of the listener for clients. A path or method that no route takes is their matter, too.
pub(crate) fn border(origins: Origins, state: AppState) -> Border {
    let gate = Gate::new(move |method, path, headers| gate::refuse(&state, method, path, headers));
    Border { problem: Problem::json_of_status, allow: routes::allow, origins, gate }
}

/// The rules of the internal listener, which takes more paths, and no page asks.
pub(crate) fn internal_border() -> Border {
    let allow = |path: &str| if path == peers::PATH { Some("GET, OPTIONS") } else { routes::allow_internal(path) };
    Border { problem: Problem::json_of_status, allow, origins: Origins::None, gate: Gate::default() }
}

/// For clients and the edge.
pub(crate) fn public(state: AppState) -> Router {
    routes_of(Listener::Public).with_state(state)
}

/// For holders of the service token.
pub(crate) fn internal(state: AppState) -> Router {
    routes_of(Listener::Internal)
        .route(peers::PATH, get(take_link))
        .layer(middleware::from_fn_with_state(state.clone(), check_token))
        .with_state(state)
}

fn routes_of(listener: Listener) -> Router<AppState> {
    Router::new()
        .route("/v1/commands", post(batch::take))
        .route("/v1/{aggregates}/{id}/{command}", post(commands::take))
        .route("/problems/{slug}", get(problems::explain))
        .route("/openapi.json", document::serve("application/json", OPENAPI))
        .route("/asyncapi.json", document::serve("application/json", ASYNCAPI))
        // The pattern of commands fits names of none. The border knows the paths that there are, and their methods.
        .method_not_allowed_fallback(async || StatusCode::NOT_FOUND)
        .layer(axum::Extension(listener))
}

async fn take_link(State(state): State<AppState>, upgrade: WebSocketUpgrade) -> Response {
    match state.log().await {
        Ok(log) => upgrade
            .max_message_size(peers::MAX_TAKEN_BYTES)
            .max_frame_size(peers::MAX_TAKEN_BYTES)
            .on_upgrade(move |socket| peers::serve(socket, log.dispatcher)),
        Err(problem) => answers::problem(&problem),
    }
}

impl HttpState {
    /// For one listener.
    pub(crate) fn new(log: watch::Receiver<Option<Log>>, metrics: Arc<Metrics>, service_token: Secret) -> Self {
        Self { log, metrics, service_token, admission: Admission::default() }
    }

    /// Of an instance that starts just now, after a moment: no command fails because it came early.
    async fn log(&self) -> Result<Log, Problem> {
        if let Some(log) = &*self.log.borrow() {
            return Ok(log.clone());
        }
        let mut log = self.log.clone();
        let known = tokio::time::timeout(STARTS_WITHIN, log.wait_for(Option::is_some)).await;
        let known = known.ok().and_then(|known| known.ok()?.clone());
        known.ok_or(Problem::new(ProblemKind::Unavailable, "the log is not there yet"))
    }
}

async fn check_token(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION);
    let bearer = sent.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let (problem, challenge) = match bearer {
        Some(bearer) if equals(bearer, state.service_token.expose().as_bytes()) => return next.run(request).await,
        Some(_) => (
            Problem::new(ProblemKind::Forbidden, "the service token is wrong"),
            "Bearer realm=\"internal\", error=\"invalid_token\"",
        ),
        None => (
            Problem::new(ProblemKind::Unauthenticated, "send the service token as a bearer"),
            "Bearer realm=\"internal\"",
        ),
    };
    let mut response = answers::problem(&problem);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

/// In a time that does not tell how far a guess is right.
fn equals(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
