//! The side that forwards.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chassis::env::Secret;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use schemas::answers::Answer;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::{Answered, Forwarded, MAX_IN_FLIGHT, MAX_MESSAGE_BYTES, MAX_MESSAGE_COMMANDS, PATH, SILENCE};
use crate::dispatch::{Incoming, now};

/// Commands that may wait to be sent to one peer.
const MAX_QUEUE: usize = 4096;
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// A link that carried nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// The links of this instance, each begun when it is first needed.
pub(crate) struct Links {
    token: Secret,
    /// By the peer's url.
    peers: Mutex<HashMap<Arc<str>, mpsc::Sender<Outgoing>>>,
}

struct Outgoing {
    incoming: Incoming,
    answer: oneshot::Sender<Answer>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Links {
    pub(crate) fn new(token: Secret) -> Self {
        Self { token, peers: Mutex::default() }
    }

    /// The peer's answer. `NoOwner`: it was not sent; `OutcomeUnknown`: it was, and no answer came.
    pub(crate) async fn send(&self, url: &Arc<str>, incoming: Incoming) -> Answer {
        let (answer, outcome) = oneshot::channel();
        let queue = self.queue(url);
        match queue.try_send(Outgoing { incoming, answer }) {
            Ok(()) => outcome.await.unwrap_or(Answer::OutcomeUnknown),
            Err(mpsc::error::TrySendError::Full(outgoing)) if outgoing.incoming.order.is_some() => {
                // A batch waits for its turn.
                match queue.send(outgoing).await {
                    Ok(()) => outcome.await.unwrap_or(Answer::OutcomeUnknown),
                    Err(_) => Answer::NoOwner,
                }
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                Answer::Overloaded { detail: "too many commands wait for another instance".into() }
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Answer::NoOwner,
        }
    }

    fn queue(&self, url: &Arc<str>) -> mpsc::Sender<Outgoing> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = peers.get(url).filter(|queue| !queue.is_closed()) {
            return queue.clone();
        }
        let (queue, outgoing) = mpsc::channel(MAX_QUEUE);
        tokio::spawn(Link::run(url.clone(), self.token.clone(), outgoing));
        peers.retain(|_, queue| !queue.is_closed());
        peers.insert(url.clone(), queue.clone());
        queue
    }
}

struct Link {
    sink: SplitSink<Socket, Message>,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    next_id: u64,
}

impl Link {
    /// Lives as long as its connection; the next command to the peer begins another.
    async fn run(url: Arc<str>, token: Secret, mut outgoing: mpsc::Receiver<Outgoing>) {
        let connected = tokio::time::timeout(CONNECT_WITHIN, connect(&url, &token)).await;
        let reason = match connected {
            Ok(Ok(socket)) => {
                let (sink, stream) = socket.split();
                let mut link = Self { sink, waiting: HashMap::new(), next_id: 0 };
                match link.carry(stream, &mut outgoing).await {
                    Ok(()) => return,
                    Err(error) => error.to_string(),
                }
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the peer does not answer".to_owned(),
        };
        tracing::warn!(peer.url = &*url, error = reason, "the link to a peer is gone");
        outgoing.close();
        while let Some(unsent) = outgoing.recv().await {
            let _ = unsent.answer.send(Answer::NoOwner);
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
                        // Nobody owed a sign of life while nothing waited.
                        heard = Instant::now();
                    }
                    self.send(&mut batch).await?;
                }
                message = stream.next() => {
                    heard = Instant::now();
                    match message.transpose()? {
                        Some(Message::Binary(bytes)) => self.answer(&bytes),
                        Some(_) => {}
                        None => return Err(Error::ConnectionClosed),
                    }
                }
                _ = tick.tick() => {
                    let silent = heard.elapsed();
                    if silent > SILENCE && !self.waiting.is_empty() {
                        return Err(Error::Io(std::io::ErrorKind::TimedOut.into()));
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
        let (unix_ms, instant) = (now().0, Instant::now());
        let commands: Vec<_> = batch
            .iter()
            .zip(self.next_id..)
            .map(|(Outgoing { incoming, .. }, id)| Forwarded {
                id,
                aggregate: incoming.aggregate.as_str(),
                command: &incoming.command,
                body: &incoming.body,
                key: incoming.key.as_str(),
                precondition: incoming.precondition,
                trace: incoming.trace.as_deref(),
                internal: incoming.internal,
                ordered: incoming.order.is_some(),
                deadline_ms: unix_ms + millis(incoming.deadline.saturating_duration_since(instant)),
            })
            .collect();
        let message = postcard::to_allocvec(&commands).expect("commands hold nothing that postcard cannot");
        for outgoing in batch.drain(..) {
            self.waiting.insert(self.next_id, outgoing.answer);
            self.next_id += 1;
        }
        self.sink.send(Message::Binary(message.into())).await
    }

    fn answer(&mut self, bytes: &[u8]) {
        match postcard::from_bytes::<Vec<Answered>>(bytes) {
            Ok(answers) => {
                for Answered { id, answer } in answers {
                    if let Some(waiting) = self.waiting.remove(&id) {
                        // Whoever asked may be gone.
                        let _ = waiting.send(answer);
                    }
                }
            }
            Err(error) => tracing::error!(error = %error, "a peer answered what cannot be read"),
        }
    }
}

async fn connect(url: &str, token: &Secret) -> Result<Socket, Error> {
    let address = url.replacen("http", "ws", 1) + PATH;
    let mut request = address.into_client_request()?;
    let bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose()))?;
    request.headers_mut().insert("authorization", bearer);
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE_BYTES));
    let (socket, _) = connect_async_with_config(request, Some(config), true).await?;
    Ok(socket)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
