//! Client side of a link: forwards commands to the owner of their partition.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chassis::env::Tokens;
use chassis::shutdown::Shutdown;
use chassis::tls::{self, ClientTls, Connection};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use schemas::answers::Answer;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tokio_util::task::TaskTracker;

use super::outages::{Outages, without_user};
use super::{
    Answered, FRAMING_BYTES, Forwarded, FromOwner, MAX_IN_FLIGHT, MAX_MESSAGE_COMMANDS, MAX_SENT_BYTES,
    MAX_TAKEN_BYTES, PATH, SILENCE, ToOwner, millis,
};
use crate::config::{PeerUrl, PeerUrls};
use crate::metrics::Metrics;
use crate::request::CommandRequest;

/// Maximum number of commands that wait to be sent to one peer.
const MAX_QUEUE: usize = 4096;
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Time without traffic after which a link is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Links of this instance, each opened when first needed.
pub(crate) struct Links {
    access: Access,
    allowed: PeerUrls,
    metrics: Arc<Metrics>,
    /// Peers by URL.
    peers: Mutex<HashMap<Arc<str>, Peer>>,
    connections: AtomicU64,
    outages: Outages,
    /// The tasks of the links, which end with `shutdown`.
    tasks: TaskTracker,
    shutdown: Shutdown,
}

/// Credentials for peers, and their trusted authorities.
#[derive(Clone)]
struct Access {
    token: Tokens,
    /// `None` if every peer is contacted without TLS.
    tls: Option<ClientTls>,
}

/// A connection to a peer, which may not be open yet or may have ended.
#[derive(Clone)]
pub(crate) struct Peer {
    /// Number of the connection, unique in this process.
    pub(crate) connection: u64,
    queue: mpsc::Sender<Outgoing>,
}

enum Outgoing {
    Command { incoming: CommandRequest, answer: oneshot::Sender<Delivery> },
    LetGo { partition: u32, done: oneshot::Sender<()> },
}

/// Outcome of forwarding a command.
#[derive(Debug)]
pub(crate) enum Delivery {
    Answered(Answer),
    /// The peer gave no answer. If `sent`, the command may have arrived.
    Unreachable {
        sent: bool,
    },
}

/// A caller that waits for a message from the peer.
enum Waiting {
    Answer(oneshot::Sender<Delivery>),
    Gone(oneshot::Sender<()>),
}

type Socket = WebSocketStream<Connection>;

impl Links {
    /// Creates the links. The token is sent only to `allowed` addresses, by TLS if their URLs begin with `https://`.
    pub(crate) fn new(token: Tokens, allowed: PeerUrls, tls: Option<ClientTls>, metrics: Arc<Metrics>) -> Self {
        Self {
            access: Access { token, tls },
            allowed,
            metrics,
            peers: Mutex::default(),
            connections: AtomicU64::new(0),
            outages: Outages::default(),
            tasks: TaskTracker::new(),
            shutdown: Shutdown::new(),
        }
    }

    /// Asks the peer to release a partition. Returns `false` if it could not be asked.
    pub(crate) async fn let_go(&self, url: &Arc<str>, partition: u32) -> bool {
        let Some(peer) = self.peer(url) else { return false };
        let (done, outcome) = oneshot::channel();
        peer.queue.send(Outgoing::LetGo { partition, done }).await.is_ok() && outcome.await.is_ok()
    }

    /// Returns the current connection to the peer, opening one if there is none. `None` if the token must not go to the
    /// address.
    pub(crate) fn peer(&self, url: &Arc<str>) -> Option<Peer> {
        if !self.allowed.allow(url) {
            self.metrics.refused_peer();
            self.outages.refuse(url);
            return None;
        }
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(url).filter(|peer| !peer.queue.is_closed()) {
            return Some(peer.clone());
        }
        let (queue, outgoing) = mpsc::channel(MAX_QUEUE);
        let link = Link::run(url.clone(), self.access.clone(), outgoing, self.outages.clone());
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = link => {}
                () = shutdown.requested() => {}
            }
        });
        peers.retain(|_, peer| !peer.queue.is_closed());
        let peer = Peer { connection: self.connections.fetch_add(1, Ordering::Relaxed), queue };
        peers.insert(url.clone(), peer.clone());
        Some(peer)
    }

    /// Closes all links, unfinished commands included, and returns once their tasks have ended.
    pub(crate) async fn end(&self) {
        self.shutdown.trigger();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Peer {
    pub(crate) async fn send(&self, incoming: CommandRequest) -> Delivery {
        let (answer, outcome) = oneshot::channel();
        let ordered = incoming.order.is_some();
        let sent = match self.queue.try_send(Outgoing::Command { incoming, answer }) {
            // A line of a batch waits for room.
            Err(mpsc::error::TrySendError::Full(outgoing)) if ordered => self.queue.send(outgoing).await.is_ok(),
            Err(mpsc::error::TrySendError::Full(_)) => {
                let detail = "too many commands are waiting for another instance".into();
                return Delivery::Answered(Answer::Overloaded { detail });
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Ok(()) => true,
        };
        if !sent {
            return Delivery::Unreachable { sent: false };
        }
        outcome.await.unwrap_or(Delivery::Unreachable { sent: true })
    }
}

struct Link {
    begun: Instant,
    sink: SplitSink<Socket, Message>,
    waiting: HashMap<u64, Waiting>,
    next_id: u64,
}

impl Link {
    /// Serves the link until its connection ends; the next command to the peer opens another.
    async fn run(url: Arc<str>, access: Access, mut outgoing: mpsc::Receiver<Outgoing>, outages: Outages) {
        let connected = tokio::time::timeout(CONNECT_WITHIN, access.connect(&url)).await;
        match connected {
            Ok(Ok(socket)) => {
                outages.end(&url);
                let (sink, stream) = socket.split();
                let mut link = Self { begun: Instant::now(), sink, waiting: HashMap::new(), next_id: 0 };
                match link.carry(stream, &mut outgoing).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(peer.url = without_user(&url), error = %error, "lost the link to a peer");
                    }
                }
            }
            Ok(Err(error)) => outages.note(&url, &error.to_string()),
            Err(_) => outages.note(&url, "timed out"),
        }
        outgoing.close();
        while let Some(unsent) = outgoing.recv().await {
            if let Outgoing::Command { answer, .. } = unsent {
                // The caller may have gone away.
                let _ = answer.send(Delivery::Unreachable { sent: false });
            }
        }
    }

    async fn carry(
        &mut self,
        mut stream: SplitStream<Socket>,
        outgoing: &mut mpsc::Receiver<Outgoing>,
    ) -> Result<(), Error> {
        let mut heard = Instant::now();
        let mut tick = tokio::time::interval(SILENCE / 3);
        let mut batch = Vec::with_capacity(MAX_MESSAGE_COMMANDS);
        loop {
            tokio::select! {
                count = outgoing.recv_many(&mut batch, MAX_MESSAGE_COMMANDS), if self.waiting.len() < MAX_IN_FLIGHT => {
                    if count == 0 {
                        return Ok(());
                    }
                    if self.waiting.is_empty() {
                        // The peer owed no sign of life while no answers were due.
                        heard = Instant::now();
                    }
                    // Other tasks that are about to forward a command join the same message.
                    tokio::task::yield_now().await;
                    while batch.len() < MAX_MESSAGE_COMMANDS
                        && let Ok(next) = outgoing.try_recv()
                    {
                        batch.push(next);
                    }
                    self.send(&mut batch).await?;
                }
                message = stream.next() => {
                    heard = Instant::now();
                    match message.transpose()? {
                        Some(Message::Binary(bytes)) => self.heard(&bytes),
                        Some(_) => {}
                        None => return Err(Error::ConnectionClosed),
                    }
                }
                _ = tick.tick() => {
                    let silent = heard.elapsed();
                    if silent > SILENCE && !self.waiting.is_empty() {
                        return Err(Error::Io(io::ErrorKind::TimedOut.into()));
                    }
                    if silent > IDLE {
                        return Err(Error::ConnectionClosed);
                    }
                    if !self.waiting.is_empty() {
                        self.sink.send(Message::Ping(Default::default())).await?;
                    }
                }
            }
        }
    }

    async fn send(&mut self, batch: &mut Vec<Outgoing>) -> Result<(), Error> {
        let now = Instant::now();
        let sent_us = u64::try_from(now.duration_since(self.begun).as_micros()).unwrap_or(u64::MAX);
        let commands: Vec<_> = batch
            .iter()
            .zip(self.next_id..)
            .filter_map(|(outgoing, id)| match outgoing {
                Outgoing::Command { incoming, .. } => Some(forwarded(id, incoming, now)),
                Outgoing::LetGo { .. } => None,
            })
            .collect();
        let mut messages: Vec<_> =
            by_size(commands).map(|commands| encode(&ToOwner::Decide { sent_us, commands })).collect();
        for outgoing in batch.drain(..) {
            let id = self.next_id;
            self.next_id += 1;
            let waiting = match outgoing {
                Outgoing::Command { answer, .. } => Waiting::Answer(answer),
                Outgoing::LetGo { partition, done } => {
                    messages.push(encode(&ToOwner::LetGo { id, partition }));
                    Waiting::Gone(done)
                }
            };
            self.waiting.insert(id, waiting);
        }
        for message in messages {
            self.sink.feed(message).await?;
        }
        self.sink.flush().await
    }

    /// Passes the peer's answers on to the callers, who may have gone away.
    fn heard(&mut self, bytes: &[u8]) {
        match postcard::from_bytes(bytes) {
            Ok(FromOwner::Answers(answers)) => {
                for Answered { id, answer } in answers {
                    if let Some(Waiting::Answer(waiting)) = self.waiting.remove(&id) {
                        let _ = waiting.send(Delivery::Answered(answer));
                    }
                }
            }
            Ok(FromOwner::Gone { id }) => {
                if let Some(Waiting::Gone(waiting)) = self.waiting.remove(&id) {
                    let _ = waiting.send(());
                }
            }
            Err(error) => tracing::error!(error = %error, "cannot decode a peer's answer"),
        }
    }
}

fn forwarded(id: u64, incoming: &CommandRequest, now: Instant) -> Forwarded<'_> {
    Forwarded {
        id,
        aggregate: incoming.aggregate.as_str(),
        command: &incoming.command,
        body: &incoming.body,
        key: incoming.key.as_str(),
        precondition: incoming.precondition,
        trace: incoming.trace.as_deref(),
        cause: incoming.cause.as_deref(),
        internal: incoming.internal,
        batch: incoming.order.as_ref().map(|order| order.name()),
        in_mailbox_ms: millis(incoming.time_limits.in_mailbox),
        left_ms: millis(incoming.time_limits.deadline.saturating_duration_since(now)),
    }
}

/// Splits commands, in order, into groups that each fit into one message.
fn by_size(commands: Vec<Forwarded<'_>>) -> impl Iterator<Item = Vec<Forwarded<'_>>> {
    let mut commands = commands.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut message = Vec::with_capacity(commands.len());
        let mut left = MAX_SENT_BYTES;
        // A command that is too large by itself is sent alone; the border admits none.
        while let Some(next) = commands.next_if(|next| message.is_empty() || size(next) <= left) {
            left = left.saturating_sub(size(&next));
            message.push(next);
        }
        Some(message).filter(|message| !message.is_empty())
    })
}

/// Returns an upper bound of the bytes that a command takes in a message.
fn size(command: &Forwarded<'_>) -> usize {
    let optional = |text: Option<&str>| text.map_or(0, str::len);
    FRAMING_BYTES
        + command.aggregate.len()
        + command.command.len()
        + command.body.len()
        + command.key.len()
        + optional(command.trace)
        + optional(command.cause)
}

fn encode(message: &ToOwner<'_>) -> Message {
    Message::Binary(postcard::to_allocvec(message).expect("a message can be represented in postcard").into())
}

impl Access {
    async fn connect(&self, url: &str) -> Result<Socket, Error> {
        let peer: PeerUrl = url.parse().map_err(io::Error::other)?;
        let tls = match (&self.tls, peer.is_secure()) {
            (Some(tls), true) => Some(tls),
            (_, false) => None,
            (None, true) => return Err(io::Error::other("no authorities to verify the peer's certificate").into()),
        };
        let mut request = (url.replacen("http", "ws", 1) + PATH).into_client_request()?;
        let bearer = HeaderValue::from_str(&format!("Bearer {}", self.token.sent().expose()))?;
        request.headers_mut().insert("authorization", bearer);
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_TAKEN_BYTES)).max_frame_size(Some(MAX_TAKEN_BYTES));
        let connection = tls::connect(peer.host(), peer.port(), tls).await?;
        let (socket, _) = client_async_with_config(request, connection, Some(config)).await?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use chassis::telemetry::Telemetry;
    use schemas::commands::{MAX_BODY_BYTES, Precondition};

    use super::*;

    #[tokio::test]
    async fn at_the_end_every_link_is_closed_and_no_caller_waits() {
        let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url: Arc<str> = format!("http://{}", silent.local_addr().unwrap()).into();
        let metrics = Arc::new(Metrics::new(&Telemetry::new("test").unwrap()));
        let links = Links::new(Tokens::from("token"), "http://127.0.0.1:*".parse().unwrap(), None, metrics);
        let begun = Instant::now();
        let (let_go, ()) = tokio::join!(links.let_go(&url, 0), links.end());
        assert!(!let_go && begun.elapsed() < CONNECT_WITHIN, "the attempt to connect is given up");
        assert!(links.tasks.is_empty());
    }

    #[test]
    fn many_large_commands_go_in_several_messages_in_order() {
        let body = vec![b'x'; MAX_BODY_BYTES];
        let command = |id| Forwarded {
            id,
            aggregate: "product-a",
            command: "register",
            body: &body,
            key: "k",
            precondition: Precondition::Version(u64::MAX),
            trace: None,
            cause: None,
            internal: false,
            batch: Some(u64::MAX),
            in_mailbox_ms: u64::MAX,
            left_ms: u64::MAX,
        };
        let messages: Vec<_> = by_size((0..256).map(command).collect()).collect();
        assert!(messages.len() > 1);
        let ids: Vec<_> = messages.iter().flatten().map(|command| command.id).collect();
        assert_eq!(ids, (0..256).collect::<Vec<_>>());
        for message in messages {
            assert!(encode(&ToOwner::Decide { sent_us: u64::MAX, commands: message }).len() <= MAX_SENT_BYTES);
        }
    }
}
