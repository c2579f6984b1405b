//! The public and the internal HTTP listener. The internal one serves peers and the reactor.

mod admission;
pub(crate) mod admin;
mod answers;
mod batch;
mod commands;
mod gate;
mod headers;
mod problems;
mod staff;

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
use chassis::env::Tokens;
use schemas::contracts::{ASYNCAPI, OPENAPI, routes};
use schemas::headers::{EXPOSED, SENT};
use schemas::problem::{Problem, ProblemKind};
use schemas::token::LogId;
use tokio::sync::watch;

use admission::Admission;
pub(crate) use staff::StaffRule;

use crate::dispatcher::Dispatcher;
use crate::metrics::Metrics;
use crate::peers;

/// The log's id, and the dispatcher that reaches the owners of its partitions.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    pub(crate) dispatcher: Arc<Dispatcher>,
}

/// State shared by all requests. An `Arc`, because axum clones it several times per request.
pub(crate) type AppState = Arc<HttpState>;

pub(crate) struct HttpState {
    /// `None` until the log has its first claim; before that no command can be answered.
    log: watch::Receiver<Option<Log>>,
    metrics: Arc<Metrics>,
    service_token: Tokens,
    staff: StaffRule,
    admission: Admission,
}

/// Maximum time that a request waits for the log on an instance that is just starting.
const STARTS_WITHIN: Duration = Duration::from_secs(3);

/// The listener that received a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    Public,
    Internal,
}

/// Returns the rules of the public listener. They also cover paths and methods that no route accepts.
pub(crate) fn border(origins: Origins, state: AppState) -> Border {
    let gate = Gate::new(move |method, path, headers| gate::refuse(&state, method, path, headers));
    let (sent, exposed) = (HeaderValue::from_static(SENT), HeaderValue::from_static(EXPOSED));
    Border { problem: Problem::json_of_status, allow: routes::allow, origins, sent, exposed, gate }
}

/// Returns the rules of the internal listener, which has more paths and is never called by web pages.
pub(crate) fn internal_border() -> Border {
    let allow = |path: &str| if path == peers::PATH { Some("GET, OPTIONS") } else { routes::allow_internal(path) };
    Border { problem: Problem::json_of_status, allow, ..Border::plain() }
}

/// Returns the routes for clients and the edge.
pub(crate) fn public(state: AppState) -> Router {
    routes_of(Listener::Public).with_state(state)
}

/// Returns the routes for holders of the service token.
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
        // The pattern of commands also matches names that are no commands. The border knows the existing paths and
        // methods.
        .method_not_allowed_fallback(async || StatusCode::NOT_FOUND)
        .layer(axum::Extension(listener))
}

async fn take_link(State(state): State<AppState>, upgrade: WebSocketUpgrade) -> Response {
    match state.log().await {
        // axum spawns the link's task, which ends when the peer closes an idle link. During shutdown it goes on to answer
        // that this instance owns nothing any more.
        Ok(log) => upgrade
            .max_message_size(peers::MAX_TAKEN_BYTES)
            .max_frame_size(peers::MAX_TAKEN_BYTES)
            .on_upgrade(move |socket| peers::serve(socket, log.dispatcher)),
        Err(problem) => answers::problem(&problem),
    }
}

impl HttpState {
    /// Creates the state of one listener.
    pub(crate) fn new(
        log: watch::Receiver<Option<Log>>,
        metrics: Arc<Metrics>,
        service_token: Tokens,
        staff: StaffRule,
    ) -> Self {
        Self { log, metrics, service_token, staff, admission: Admission::default() }
    }

    /// Returns the log. On an instance that is just starting it waits a moment, so that no command fails for being
    /// early.
    async fn log(&self) -> Result<Log, Problem> {
        if let Some(log) = &*self.log.borrow() {
            return Ok(log.clone());
        }
        let mut log = self.log.clone();
        let known = tokio::time::timeout(STARTS_WITHIN, log.wait_for(Option::is_some)).await;
        let known = known.ok().and_then(|known| known.ok()?.clone());
        known.ok_or(Problem::new(ProblemKind::Unavailable, "the log is not available yet"))
    }
}

async fn check_token(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let (problem, challenge) = match staff::bearer(request.headers()) {
        Some(bearer) if state.service_token.accept(bearer) => return next.run(request).await,
        Some(_) => (
            Problem::new(ProblemKind::Forbidden, "the service token is wrong"),
            "Bearer realm=\"internal\", error=\"invalid_token\"",
        ),
        None => (
            Problem::new(ProblemKind::Unauthenticated, "send the service token as a bearer token"),
            "Bearer realm=\"internal\"",
        ),
    };
    let mut response = answers::problem(&problem);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}
