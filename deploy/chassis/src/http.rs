//! Serves a router over HTTP/1.1, behind a [`Border`].
//!
//! `axum::serve` is not used: it limits neither the time to read a request's head nor the number of connections, and
//! its graceful shutdown has no deadline. Not provided here either: HTTP/2 (the edge terminates it), a time limit for
//! request bodies (handlers bound their own awaits), and tracking of upgraded connections (their owners close them).

mod stream;
mod timed;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::either::Either;

use crate::border::Border;
use crate::listeners::Listener;
use crate::shutdown::Shutdown;
use crate::tls::server::ServerTls;
use stream::{Stream, Wire};
use timed::TimedStream;

/// Maximum number of connections: enough for an edge that keeps connections alive. A process's default limit of open
/// files is often lower; reaching that only pauses accepting.
pub const MAX_CONNECTIONS: usize = 10_000;

/// Time from a connection's last answer (or its start) to the end of the next request's head, so it closes slow senders
/// and idle connections alike. Longer than the 60 s for which nginx keeps an idle upstream connection: the side that
/// sends requests should be the one that closes, or a request may meet a closing connection.
pub const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(75);

/// Time within which a peer must read some of its answer. The kernel accepts a connection's first megabytes whether the
/// peer reads or not, and frees space only in large steps, so a slow but honest reader needs a while to reach the next
/// step.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum size of a connection's read buffer, and thus of a request's head. hyper's default is 400 KiB, which adds up
/// to much memory with many connections.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// Length of the accept queue, as far as the kernel allows. Crowds connect at once, and a client that finds the queue
/// full retries after a second: by then an edge has given up.
const BACKLOG: u32 = 4096;

/// Pause of accepting after an error that does not concern a single connection, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Limits of one server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_connections: usize,
    /// Treatment of connections above `max_connections`.
    pub when_full: WhenFull,
    /// See [`HEAD_READ_TIMEOUT`].
    pub head_read_timeout: Duration,
    /// See [`WRITE_TIMEOUT`].
    pub write_timeout: Duration,
    /// Time that requests in flight have to finish after shutdown is requested.
    pub grace: Duration,
}

impl Limits {
    /// Returns the default limits, with the given grace period.
    pub fn new(grace: Duration) -> Self {
        Self {
            max_connections: MAX_CONNECTIONS,
            when_full: WhenFull::Wait,
            head_read_timeout: HEAD_READ_TIMEOUT,
            write_timeout: WRITE_TIMEOUT,
            grace,
        }
    }
}

/// Policy for a new connection when the maximum number is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The new connection waits in the kernel's queue.
    Wait,
    /// The new connection replaces the oldest one: for short requests that must not wait.
    CloseOldest,
}

tokio::task_local! {
    static PEER: SocketAddr;
}

/// Returns the address that the current request came from, or `None` outside of a request.
pub(crate) fn peer() -> Option<SocketAddr> {
    PEER.try_get().ok()
}

/// Listens on `addr`; port 0 takes any free one.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Like `TcpListener::bind`: a restarted instance can bind although connections of the old one are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Serves until shutdown is requested. Then it refuses new connections, closes idle ones, lets requests in flight
/// finish within the grace period, cuts off those that do not, and returns once every connection's task is joined.
///
/// Answers are sent without delay (TCP_NODELAY). Dropping the future closes all connections.
pub async fn serve(listener: impl Into<Listener>, router: Router, border: Border, limits: Limits, shutdown: Shutdown) {
    let cut = serve_and_cut(listener.into(), router, border, limits, shutdown).await;
    if cut > 0 {
        tracing::warn!(connections = cut, "connections cut off at the end of the shutdown grace period");
    }
}

/// Serves as [`serve`] does; returns the number of connections that were cut off.
async fn serve_and_cut(
    Listener { tcp: listener, tls }: Listener,
    router: Router,
    border: Border,
    limits: Limits,
    shutdown: Shutdown,
) -> usize {
    let border = Arc::new(border);
    let mut following = std::pin::pin!(follow_files(tls.clone()));
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.requested() => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            () = following.as_mut() => {}
            (stream, peer) = accept(&listener), if connections.len() < limits.max_connections
                || limits.when_full == WhenFull::CloseOldest =>
            {
                let serving = Serving { router: router.clone(), border: border.clone(), limits };
                let connection = serving.connection(stream, peer, tls.clone(), shutdown.clone());
                let handle = connections.spawn(PEER.scope(peer, connection));
                if limits.when_full == WhenFull::CloseOldest {
                    oldest_first.retain(|connection| !connection.is_finished());
                    oldest_first.push_back(handle);
                    if oldest_first.len() > limits.max_connections && let Some(oldest) = oldest_first.pop_front() {
                        oldest.abort();
                    }
                }
            }
        }
    }
    // New connections are refused from here on, not left unanswered.
    drop(listener);
    let all_closed = tokio::time::timeout(limits.grace, async {
        while let Some(ended) = connections.join_next().await {
            log_panic(ended);
        }
    });
    // The number of connections left shows whether the time ran out.
    let _in_time = all_closed.await;
    let cut = connections.len();
    connections.shutdown().await;
    cut
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(error = %error, "accepting connections failed; pausing");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Follows the files of the certificate, if there is one. Never returns.
async fn follow_files(tls: Option<ServerTls>) {
    match tls {
        Some(tls) => tls.follow_files().await,
        None => std::future::pending().await,
    }
}

/// Everything that the connections of a listener share.
struct Serving {
    router: Router,
    border: Arc<Border>,
    limits: Limits,
}

impl Serving {
    /// Serves a connection until it ends. The handshake happens here, so that it delays no other connection.
    async fn connection(self, stream: TcpStream, peer: SocketAddr, tls: Option<ServerTls>, shutdown: Shutdown) {
        // This fails only on a closed connection, which the first read reports.
        let _gone = stream.set_nodelay(true);
        let stream = TimedStream::new(stream, self.limits.write_timeout);
        let Some(tls) = tls else { return self.requests(Either::Left(stream), peer, shutdown).await };
        let shaken = tokio::select! {
            shaken = tls.accept(stream) => shaken,
            () = shutdown.requested() => return,
        };
        match shaken {
            Ok(stream) => self.requests(Either::Right(stream), peer, shutdown).await,
            Err(error) => tracing::debug!(peer = %peer, error = %error, "TLS handshake failed"),
        }
    }

    async fn requests(self, wire: Wire, peer: SocketAddr, shutdown: Shutdown) {
        let (stream, mut refusals) = Stream::new(wire);
        let Self { router, border, limits } = self;
        let router = TowerToHyperService::new(router);
        let answer = service_fn(async |request| Ok::<_, Infallible>(border.answer(&router, request).await));
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_read_timeout)
            .max_buf_size(MAX_BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), answer)
            .with_upgrades();
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = shutdown.requested() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %peer, error = %error, "connection ended early");
        }
        if let Ok(refusal) = refusals.try_recv() {
            refusal.answer(&border).await;
        }
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(error = %error, "an answer's body panicked; its connection is closed");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::telemetry::Telemetry;
    use crate::tls::{self, testing::Files};

    const SOON: Duration = Duration::from_secs(5);

    async fn start(router: Router, limits: Limits) -> (SocketAddr, Shutdown, JoinHandle<usize>) {
        start_with(None, router, limits).await
    }

    async fn start_with(
        tls: Option<ServerTls>,
        router: Router,
        limits: Limits,
    ) -> (SocketAddr, Shutdown, JoinHandle<usize>) {
        let tcp = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let (listener, shutdown) = (Listener { tcp, tls }, Shutdown::new());
        (address, shutdown.clone(), tokio::spawn(serve_and_cut(listener, router, Border::plain(), limits, shutdown)))
    }

    async fn send(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn read_to_end(mut stream: TcpStream) -> String {
        let mut text = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        text
    }

    /// Returns a route that reports each request that enters it, and answers once it is released.
    fn held_route() -> (Router, mpsc::UnboundedReceiver<()>, Shutdown) {
        let (entered, entries) = mpsc::unbounded_channel();
        let release = Shutdown::new();
        let released = release.clone();
        let handler = async move || {
            entered.send(()).unwrap();
            released.requested().await;
            "done"
        };
        (Router::new().route("/", get(handler)), entries, release)
    }

    #[tokio::test]
    async fn requests_in_flight_finish_and_idle_connections_close() {
        let (router, mut entries, release) = held_route();
        let (address, shutdown, server) = start(router, Limits::new(SOON)).await;
        let silent = send(address, "").await;
        let idle = send(address, "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n").await;
        idle.readable().await.unwrap();
        let busy = send(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        entries.recv().await.unwrap();
        shutdown.trigger();
        assert!(read_to_end(idle).await.starts_with("HTTP/1.1 404"));
        assert_eq!(read_to_end(silent).await, "");
        release.trigger();
        assert!(read_to_end(busy).await.ends_with("done"));
        assert_eq!(server.await.unwrap(), 0);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn requests_that_outlive_the_grace_are_cut_and_counted() {
        let (router, mut entries, _never_released) = held_route();
        let (address, shutdown, server) = start(router, Limits::new(Duration::from_millis(50))).await;
        let _busy = send(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        entries.recv().await.unwrap();
        shutdown.trigger();
        assert_eq!(server.await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_closes_its_connection() {
        let limits = Limits { head_read_timeout: Duration::from_millis(50), ..Limits::new(SOON) };
        let (address, _shutdown, _server) = start(Router::new(), limits).await;
        let slow = send(address, "GET / HTTP/1.1\r\nhost:").await;
        read_to_end(slow).await;
    }

    #[tokio::test]
    async fn a_head_that_cannot_be_read_is_refused_by_a_problem() {
        let (address, _shutdown, _server) = start(Router::new(), Limits::new(SOON)).await;
        let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
        // The request is refused before all of it is read, and the answer must arrive nevertheless.
        let large = format!("x: {}\r\n", "a".repeat(300 * 1024));
        for (request, status) in [
            ("GARBAGE\r\n\r\n", 400),
            ("GET /a b HTTP/1.1\r\nhost: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost: \u{1}\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +1\r\n\r\n", 400),
            ("GET / HTTP/3.0\r\nhost: x\r\n\r\n", 400),
            (&format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n"), 431),
            (&format!("GET / HTTP/1.1\r\nhost: x\r\n{large}\r\n"), 431),
        ] {
            let answer = read_to_end(send(address, request).await).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let header = |name| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.99}: {head}");
            assert_eq!(header("content-type"), Some("application/problem+json"), "{request:.99}: {head}");
            assert_eq!(header("x-content-type-options"), Some("nosniff"), "{head}");
            assert_eq!(header("content-length"), Some(&*body.len().to_string()), "{head}");
            assert!(header("date").is_some() && header("connection") == Some("close"), "{head}");
            let problem: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!((&problem["status"], problem["request_id"].as_str()), (&status.into(), header("x-request-id")));
        }
    }

    #[tokio::test]
    async fn a_refusal_behind_an_answer_on_one_connection_is_a_problem_too() {
        let (address, _shutdown, _server) = start(Router::new().route("/", get("done")), Limits::new(SOON)).await;
        let answers = read_to_end(send(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\nGARBAGE\r\n\r\n").await).await;
        let (done, refused) = answers.split_once("done").unwrap();
        assert!(done.starts_with("HTTP/1.1 200"), "{answers}");
        assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("application/problem+json"), "{answers}");
    }

    /// Sends a message when dropped.
    struct Told(mpsc::UnboundedSender<()>);

    impl Drop for Told {
        fn drop(&mut self) {
            let _nobody_asks = self.0.send(());
        }
    }

    /// Returns a route with an endless answer, and a channel that reports each answer that is dropped.
    fn endless_route() -> (Router, mpsc::UnboundedReceiver<()>) {
        let (given_up, told) = mpsc::unbounded_channel();
        let handler = async move || {
            let held = Told(given_up.clone());
            let part = move || {
                let _held = &held;
                Ok::<_, Infallible>(vec![b' '; 65536])
            };
            axum::body::Body::from_stream(futures_util::stream::repeat_with(part))
        };
        (Router::new().route("/", get(handler)), told)
    }

    #[tokio::test]
    async fn an_answer_that_is_not_read_is_dropped_and_one_that_is_read_continues() {
        let limits = Limits { write_timeout: Duration::from_millis(300), ..Limits::new(SOON) };
        let (router, mut given_up) = endless_route();
        let (address, _shutdown, _server) = start(router, limits).await;
        let request = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let mut reader = send(address, request).await;
        let _stalled = send(address, request).await;
        let mut part = vec![0; 65536];
        let waiting = async {
            loop {
                tokio::select! {
                    told = given_up.recv() => break told.unwrap(),
                    read = reader.read(&mut part) => assert!(read.unwrap() > 0),
                }
            }
        };
        tokio::time::timeout(SOON, waiting).await.unwrap();
        assert!(reader.read(&mut part).await.unwrap() > 0);
        assert!(given_up.try_recv().is_err(), "the reading client is still served");
        drop(reader);
        tokio::time::timeout(SOON, given_up.recv()).await.unwrap().unwrap();
    }

    /// Returns TLS with a certificate of its own, and the telemetry that counts its failures.
    fn secured(files: &Files) -> (ServerTls, Telemetry) {
        let telemetry = Telemetry::new("test").unwrap();
        (ServerTls::new(&files.certificate, &files.key, &telemetry).unwrap(), telemetry)
    }

    #[tokio::test]
    async fn over_tls_refusals_arrive_and_unread_answers_are_dropped() {
        let files = Files::new("served");
        let limits = Limits { write_timeout: Duration::from_millis(300), ..Limits::new(SOON) };
        let (router, mut given_up) = endless_route();
        let (address, _shutdown, _server) = start_with(Some(secured(&files).0), router, limits).await;
        let client = tls::client(Some(&files.certificate)).unwrap();
        let send = async |text: &str| {
            let mut stream = tls::connect("localhost", address.port(), Some(&client)).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
        };
        let mut answer = String::new();
        let mut refused = send("GARBAGE\r\n\r\n").await;
        tokio::time::timeout(SOON, refused.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("application/problem+json"), "{answer}");
        let _stalled = send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        tokio::time::timeout(SOON, given_up.recv()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_without_tls_and_one_of_another_authority_are_refused_and_counted() {
        let (files, other) = (Files::new("refusing"), Files::new("stranger"));
        let (tls, telemetry) = secured(&files);
        let (address, _shutdown, _server) = start_with(Some(tls), Router::new(), Limits::new(SOON)).await;
        // It delays nobody.
        let _silent = send(address, "").await;
        let mut plain = send(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut answer = Vec::new();
        tokio::time::timeout(SOON, plain.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        for (name, authority) in [("localhost", &other), ("ip6-localhost", &files)] {
            let client = tls::client(Some(&authority.certificate)).unwrap();
            let name = rustls::pki_types::ServerName::try_from(name).unwrap();
            let stream = TcpStream::connect(address).await.unwrap();
            tokio_rustls::TlsConnector::from(client).connect(name, stream).await.unwrap_err();
        }
        let counted = async || {
            while !telemetry.render().unwrap().contains("stampede_tls_handshakes_failed_total 3") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, counted()).await.unwrap();
    }

    #[tokio::test]
    async fn a_new_connection_replaces_the_oldest_where_it_must_not_wait() {
        let limits = Limits { max_connections: 2, when_full: WhenFull::CloseOldest, ..Limits::new(SOON) };
        let (address, _shutdown, _server) = start(Router::new().route("/", get("done")), limits).await;
        let idle = [send(address, "").await, send(address, "").await];
        let asked = send(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(read_to_end(asked).await.ends_with("done"));
        let [oldest, _other] = idle;
        assert_eq!(read_to_end(oldest).await, "");
    }

    #[tokio::test]
    async fn a_crowd_that_arrives_at_once_is_connected_before_any_is_accepted() {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut crowd = Vec::new();
        // More than the accept queue of Tokio's own listener holds.
        for _ in 0..1_500 {
            crowd.push(tokio::time::timeout(SOON, TcpStream::connect(address)).await.unwrap().unwrap());
        }
    }

    #[tokio::test]
    async fn connections_above_the_limit_wait_for_room() {
        let limits = Limits { max_connections: 1, ..Limits::new(SOON) };
        let (router, mut entries, release) = held_route();
        let (address, _shutdown, _server) = start(router, limits).await;
        let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let first = send(address, request).await;
        entries.recv().await.unwrap();
        let second = send(address, request).await;
        assert!(tokio::time::timeout(Duration::from_millis(50), entries.recv()).await.is_err());
        release.trigger();
        assert!(read_to_end(first).await.ends_with("done"));
        assert!(read_to_end(second).await.ends_with("done"));
    }
}
