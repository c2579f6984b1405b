//! One who buys or watches, over a connection as a browser keeps it: made when it is first needed, and anew once it broke.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, ETAG, HOST, HeaderName, HeaderValue, IF_NONE_MATCH, RETRY_AFTER};
use hyper::http::request;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY: usize = 1 << 20;
/// Before a command is sent again that got no answer.
const PAUSE: Duration = Duration::from_millis(50);
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const CONSISTENCY_TOKEN: HeaderName = HeaderName::from_static("consistency-token");
const PREFER: HeaderName = HeaderName::from_static("prefer");

pub(super) struct Visitor {
    address: SocketAddr,
    host: HeaderValue,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted {
        version: u64,
        token: String,
        /// The name of the claim's order.
        order: Option<String>,
    },
    Rejected(String),
    /// Nothing was done, or nobody knows: the same again is safe.
    Later {
        after: Duration,
    },
    /// None of these.
    Odd(String),
}

#[derive(Deserialize)]
struct AnswerBody {
    version: Option<u64>,
    token: Option<String>,
    order: Option<String>,
    rejection: Option<String>,
}

impl Visitor {
    pub(super) fn new(address: SocketAddr) -> Self {
        let host = HeaderValue::try_from(address.to_string()).expect("an address is of digits, dots and colons");
        Self { address, host, connection: None }
    }

    pub(super) async fn command(&mut self, path: &Uri, key: &str, body: String) -> Answer {
        let request = Request::post(path.clone()).header(CONTENT_TYPE, "application/json").header(IDEMPOTENCY_KEY, key);
        match self.send(request, body.into()).await {
            Ok(response) => answer(&response),
            Err(_) => Answer::Later { after: PAUSE },
        }
    }

    /// As a watcher asks: with what it has. Gives the tag of what there is now.
    pub(super) async fn look(&mut self, path: &Uri, tag: Option<&HeaderValue>) -> Result<Option<HeaderValue>> {
        let mut request = Request::get(path.clone());
        if let Some(tag) = tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let response = self.send(request, Bytes::new()).await?;
        let status = response.status();
        anyhow::ensure!(matches!(status, StatusCode::OK | StatusCode::NOT_MODIFIED), "{path} was answered {status}");
        Ok(response.headers().get(ETAG).cloned())
    }

    /// Whether the views show the token within ten seconds.
    pub(super) async fn is_shown(&mut self, path: &Uri, token: &str) -> bool {
        let request = Request::get(path.clone()).header(CONSISTENCY_TOKEN, token).header(PREFER, "wait=10");
        self.send(request, Bytes::new()).await.is_ok_and(|response| response.status() == StatusCode::OK)
    }

    /// After an error the next one goes over a new connection.
    async fn send(&mut self, request: request::Builder, body: Bytes) -> Result<Response<Bytes>> {
        let request = request.header(HOST, &self.host).body(Full::new(body)).context("write a request")?;
        let answered = tokio::time::timeout(TIMEOUT, self.exchange(request)).await.context("no answer came in time");
        let answered = answered.and_then(|answered| answered);
        if answered.is_err() {
            self.connection = None;
        }
        answered
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
        let (head, body) = self.connection().await?.send_request(request).await?.into_parts();
        // Read to its end, or the connection is of no use any more.
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(anyhow::Error::from_boxed)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    async fn connection(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        let kept = match self.connection.take() {
            Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
            None => None,
        };
        let connection = match kept {
            Some(kept) => kept,
            None => connect(self.address).await?,
        };
        Ok(self.connection.insert(connection))
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with its visitor. What breaks it, the request that is under way tells.
    tokio::spawn(connection);
    Ok(requests)
}

fn answer(response: &Response<Bytes>) -> Answer {
    let body = serde_json::from_slice::<AnswerBody>(response.body());
    match (response.status().as_u16(), body) {
        (200, Ok(AnswerBody { version: Some(version), token: Some(token), order, .. })) => {
            Answer::Accepted { version, token, order }
        }
        (422, Ok(AnswerBody { rejection: Some(rejection), .. })) => Answer::Rejected(rejection),
        (502..=504, _) => {
            let seconds = response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
            Answer::Later { after: Duration::from_secs(seconds.unwrap_or(1)) }
        }
        (status, _) => Answer::Odd(format!("{status} {}", String::from_utf8_lossy(response.body()))),
    }
}
