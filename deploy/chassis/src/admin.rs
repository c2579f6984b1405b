//! The admin server: `/livez`, `/readyz`, `/metrics`, `/buildinfo` and `/log`, for operators only.

mod log;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use crate::border::Border;
use crate::build;
use crate::exit::Misuse;
use crate::http::{self, Limits, WhenFull};
use crate::instance;
use crate::listeners::{Listener, Listeners};
use crate::readiness::Readiness;
use crate::shutdown::Shutdown;
use crate::telemetry::Telemetry;
use crate::tls::server::ServerTls;

/// Time that a scrape in flight has to finish when the server is stopped.
const GRACE: Duration = Duration::from_secs(1);

/// Maximum number of connections: more than probers and scrapers need, and low enough that a mistake does not exhaust
/// the process's file descriptors. A new connection replaces the oldest, so that no probe waits behind idle ones.
const MAX_CONNECTIONS: usize = 64;

/// Time limit for a request's head, and for the idle time between two requests.
const IDLE: Duration = Duration::from_secs(5);

/// An admin server with its listener bound, before it serves.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    tls: Option<ServerTls>,
    local_addr: SocketAddr,
    router: Router,
    about: About,
}

/// State that the routes report.
#[derive(Debug, Clone)]
struct About {
    service: &'static str,
    readiness: Readiness,
    telemetry: Telemetry,
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("the admin server's address cannot be used")]
    Refused(#[source] Misuse),
    #[error("the admin server cannot listen on {addr}")]
    Bind {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the admin server's thread could not be started")]
    Start(#[source] io::Error),
}

impl AdminServer {
    /// Listens on `addr`; port 0 takes any free one.
    pub fn bind(
        listeners: &Listeners,
        addr: SocketAddr,
        service: &'static str,
        readiness: Readiness,
        telemetry: &Telemetry,
    ) -> Result<Self, AdminError> {
        let tls = listeners.tls_of_admin(addr).map_err(AdminError::Refused)?;
        let bound = TcpListener::bind(addr).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        });
        let (local_addr, listener) = bound.map_err(|source| AdminError::Bind { addr, source })?;
        let about = About { service, readiness, telemetry: telemetry.clone() };
        Ok(Self { listener, tls, local_addr, router: Router::new(), about })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Adds a service's own admin routes. They run on the admin server's runtime, and so would any client connection
    /// that a handler opens; handlers therefore send requests to the service's tasks over channels instead of opening
    /// connections.
    ///
    /// # Panics
    /// Panics if a route exists already.
    pub fn merge(mut self, routes: Router) -> Self {
        self.router = self.router.merge(routes);
        self
    }

    /// Serves on a thread and a runtime of its own, so that it answers while the main runtime is overloaded.
    ///
    /// The server keeps running after shutdown is requested, so that a drain can be observed: `/readyz` then answers
    /// 503, which takes the instance out of load balancing. [`AdminHandle::stop`] ends the server.
    pub fn serve(self, shutdown: Shutdown) -> Result<AdminHandle, AdminError> {
        // Here rather than in each line, which would be longer by a half. Collectors add the process to lines anyway.
        tracing::info!(
            service.name = self.about.service,
            service.instance.id = instance::name(self.about.service, self.local_addr),
            service.version = build::VERSION,
            build.commit = build::COMMIT,
            build.profile = build::PROFILE,
            "started"
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Start)?;
        let tcp = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(self.listener).map_err(AdminError::Start)?
        };
        let listener = Listener { tcp, tls: self.tls };
        let router = routes(self.about, shutdown).merge(self.router).layer(middleware::from_fn(log_change));
        let limits = Limits {
            max_connections: MAX_CONNECTIONS,
            when_full: WhenFull::CloseOldest,
            head_read_timeout: IDLE,
            ..Limits::new(GRACE)
        };
        let stop = Shutdown::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                runtime.block_on(http::serve(listener, router, Border::plain(), limits, stopped));
            })
            .map_err(AdminError::Start)?;
        Ok(AdminHandle { stop, thread: Some(thread) })
    }
}

/// A running admin server. Dropping the handle asks the server to stop without waiting for it.
#[derive(Debug)]
#[must_use = "dropping the handle stops the admin server"]
pub struct AdminHandle {
    stop: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl AdminHandle {
    /// Stops the server and joins its thread, which takes up to about a second. Call it last, after the drain.
    pub async fn stop(mut self) {
        self.stop.trigger();
        let Some(thread) = self.thread.take() else { return };
        // Joining blocks, and the thread may still be answering a scrape.
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the admin server's thread panicked");
        }
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        self.stop.trigger();
    }
}

/// Logs who changed state, or tried to, how, and with which outcome.
async fn log_change(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = check_change(request, next).await;
    let (peer, status) = (http::peer().map(|peer| peer.ip().to_string()), response.status().as_u16());
    tracing::info!(http.method = %method, http.path = path, http.status = status, peer.ip = peer, "admin action");
    response
}

/// Allows only programs, not web pages, to change state. Browsers add `Origin` or `Sec-Fetch-Site` to every POST, even
/// if DNS rebinding hides the real host from them, and they send a preflight request before JSON.
async fn check_change(request: Request, next: Next) -> Response {
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site") {
        return StatusCode::FORBIDDEN.into_response();
    }
    let sent = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !sent.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    next.run(request).await
}

fn routes(about: About, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/livez", get("ok"))
        .route("/readyz", get(readyz).with_state((about.readiness, shutdown)))
        .route("/metrics", get(metrics).with_state(about.telemetry))
        .route("/buildinfo", get(buildinfo).with_state(about.service))
        .merge(log::routes())
}

async fn readyz(State((readiness, shutdown)): State<(Readiness, Shutdown)>) -> Response {
    let reasons = readiness.state().into_iter().map(|(name, reason)| (name.to_owned(), Value::from(reason)));
    let mut waiting: Map<String, Value> = reasons.collect();
    if shutdown.is_requested() {
        waiting.insert("shutdown".to_owned(), Value::from("draining"));
    }
    if waiting.is_empty() {
        Json(json!({ "ready": true })).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "waiting": waiting }))).into_response()
    }
}

async fn metrics(State(telemetry): State<Telemetry>) -> Response {
    match telemetry.render() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "rendering the metrics failed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn buildinfo(State(service): State<&'static str>) -> Json<Value> {
    let mut info = json!({
        "service": service,
        "version": build::VERSION,
        "rustc": build::RUSTC,
        "profile": build::PROFILE,
    });
    if let Some(commit) = build::COMMIT {
        info["commit"] = Value::from(commit);
    }
    Json(info)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::env::Env;
    use crate::listeners::ListenerSettings;

    /// Requests `path`, blocking the test's own runtime: the admin server must answer nevertheless.
    fn get_blocking(address: SocketAddr, path: &str) -> (u16, String) {
        ask_blocking(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
    }

    fn put_blocking(address: SocketAddr, path: &str, body: &str) -> (u16, String) {
        let head = "host: x\r\ncontent-type: application/json\r\nconnection: close\r\n";
        ask_blocking(address, &format!("PUT {path} HTTP/1.1\r\n{head}content-length: {}\r\n\r\n{body}", body.len()))
    }

    fn ask_blocking(address: SocketAddr, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn bind(readiness: &Readiness, telemetry: &Telemetry) -> AdminServer {
        let listeners = Listeners::new(&ListenerSettings::default(), telemetry).unwrap();
        let local = ([127, 0, 0, 1], 0).into();
        AdminServer::bind(&listeners, local, "test-service", readiness.clone(), telemetry).unwrap()
    }

    #[tokio::test]
    async fn it_answers_while_the_main_runtime_is_blocked() {
        let telemetry = Telemetry::new("test-service").unwrap();
        telemetry.counter("commands", &[], "").add(1, &[]);
        let server = bind(&Readiness::new(), &telemetry).merge(Router::new().route("/own", get("mine")));
        let address = server.local_addr();
        let handle = server.serve(Shutdown::new()).unwrap();
        assert_eq!(get_blocking(address, "/livez"), (200, "ok".to_owned()));
        assert_eq!(get_blocking(address, "/own"), (200, "mine".to_owned()));
        assert!(get_blocking(address, "/metrics").1.contains("commands_total 1"));
        let info: Value = serde_json::from_str(&get_blocking(address, "/buildinfo").1).unwrap();
        assert_eq!(info["service"], "test-service");
        assert!(info["rustc"].as_str().unwrap().starts_with("rustc "));
        assert_eq!(get_blocking(address, "/nowhere").0, 404);
        handle.stop().await;
        assert!(TcpStream::connect(address).is_err());
    }

    #[tokio::test]
    async fn only_a_program_that_sends_json_may_change_state() {
        let own = Router::new().route("/own", axum::routing::post("done"));
        let server = bind(&Readiness::new(), &Telemetry::new("test-service").unwrap()).merge(own);
        let address = server.local_addr();
        let handle = server.serve(Shutdown::new()).unwrap();
        let json = "content-type: application/json\r\n";
        for (headers, expected) in [
            (json.to_owned(), 200),
            (String::new(), 415),
            ("content-type: text/plain\r\n".to_owned(), 415),
            (format!("{json}origin: http://evil.example\r\n"), 403),
            (format!("{json}sec-fetch-site: same-origin\r\n"), 403),
        ] {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "POST /own HTTP/1.1\r\nhost: x\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n")
                .unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {expected} ")), "{headers}: {text}");
            assert_eq!(text.contains("application/problem+json"), expected != 200, "{text}");
        }
        handle.stop().await;
    }

    #[tokio::test]
    async fn the_filter_of_the_log_is_replaced_at_once_and_a_wrong_one_refused() {
        crate::telemetry::init_logs(&Env::from([("LOG_FORMAT", "json")])).unwrap();
        let server = bind(&Readiness::new(), &Telemetry::new("test-service").unwrap());
        let address = server.local_addr();
        let handle = server.serve(Shutdown::new()).unwrap();
        let is_on = || tracing::enabled!(target: "chatty", tracing::Level::TRACE);
        assert!(!is_on());
        for (body, expected, told) in [
            (r#"{"filter":"warn,chatty=trace"}"#, 200, "chatty=trace"),
            (r#"{"filter":"warn,chaty"}"#, 400, r#"\"chaty\" is neither a level nor"#),
            ("{}", 400, "expected a body such as"),
            (&format!(r#"{{"filter":"{}"}}"#, "x".repeat(1001)), 400, "1000 bytes"),
            (&" ".repeat(5000), 413, ""),
        ] {
            let (status, answer) = put_blocking(address, "/log", body);
            assert!(status == expected && answer.contains(told), "{body}: {status} {answer}");
        }
        assert!(is_on() && !tracing::enabled!(target: "other", tracing::Level::INFO));
        let (_, shown) = get_blocking(address, "/log");
        assert!(shown.contains("rdkafka::client=off") && shown.contains("chatty=trace"), "{shown}");
        handle.stop().await;
    }

    #[tokio::test]
    async fn probes_do_not_wait_behind_idle_connections() {
        let server = bind(&Readiness::new(), &Telemetry::new("test-service").unwrap());
        let address = server.local_addr();
        let handle = server.serve(Shutdown::new()).unwrap();
        let idle: Vec<_> = (0..2 * MAX_CONNECTIONS).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!(get_blocking(address, "/livez"), (200, "ok".to_owned()));
        drop(idle);
        handle.stop().await;
    }

    #[tokio::test]
    async fn readyz_lists_the_unmet_conditions_and_follows_them() {
        let readiness = Readiness::new();
        let kafka = readiness.condition("kafka");
        let server = bind(&readiness, &Telemetry::new("test-service").unwrap());
        let address = server.local_addr();
        let shutdown = Shutdown::new();
        let handle = server.serve(shutdown.clone()).unwrap();
        kafka.waiting("no broker answers");
        let waiting = r#"{"ready":false,"waiting":{"kafka":"no broker answers"}}"#;
        assert_eq!(get_blocking(address, "/readyz"), (503, waiting.to_owned()));
        kafka.ready();
        assert_eq!(get_blocking(address, "/readyz"), (200, r#"{"ready":true}"#.to_owned()));
        shutdown.trigger();
        let draining = r#"{"ready":false,"waiting":{"shutdown":"draining"}}"#;
        assert_eq!(get_blocking(address, "/readyz"), (503, draining.to_owned()));
        assert_eq!(get_blocking(address, "/livez").0, 200);
        handle.stop().await;
    }
}
