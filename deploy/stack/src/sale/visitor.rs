//! One who buys or watches, over a connection as a browser keeps it: made when it is first needed, and anew once it broke.
//!
//! It writes its requests and reads its answers itself: with a general client's tasks, channels and maps of headers a claim
//! took half as much processor time again, which the crowd takes from those who answer it.

use std::fmt;
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEADERS: usize = 64;
const MAX_ANSWER: usize = 1 << 20;
/// Most answers come with one read.
const READ: usize = 2 << 10;
/// Before a command is sent again that got no answer.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Visitor {
    address: SocketAddr,
    host: String,
    connection: Option<TcpStream>,
    request: Vec<u8>,
    /// The bytes of the last answer.
    answer: Vec<u8>,
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

/// An answer that came whole. `body`: where it lies among the bytes that were read.
#[derive(Debug, PartialEq, Eq)]
struct Response {
    status: u16,
    etag: Option<String>,
    retry_after: Option<u64>,
    /// The server closes the connection.
    is_last: bool,
    body: Range<usize>,
}

impl Visitor {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, host: address.to_string(), connection: None, request: Vec::new(), answer: Vec::new() }
    }

    pub(super) async fn command(&mut self, path: &str, key: &str, body: &str) -> Answer {
        let length = body.len();
        let headers =
            format_args!("Content-Type: application/json\r\nIdempotency-Key: {key}\r\nContent-Length: {length}\r\n");
        match self.send("POST", path, headers, body).await {
            Ok(response) => self.answer_of(&response),
            Err(_) => Answer::Later { after: PAUSE },
        }
    }

    /// As a watcher asks: with what it has. Gives the tag of what there is now.
    pub(super) async fn look(&mut self, path: &str, tag: Option<&str>) -> Result<Option<String>> {
        let response = match tag {
            Some(tag) => self.send("GET", path, format_args!("If-None-Match: {tag}\r\n"), "").await?,
            None => self.send("GET", path, format_args!(""), "").await?,
        };
        let status = response.status;
        ensure!(matches!(status, 200 | 304), "{path} was answered {status}");
        Ok(response.etag)
    }

    /// Whether the views show the token within ten seconds.
    pub(super) async fn is_shown(&mut self, path: &str, token: &str) -> bool {
        let headers = format_args!("Consistency-Token: {token}\r\nPrefer: wait=10\r\n");
        self.send("GET", path, headers, "").await.is_ok_and(|response| response.status == 200)
    }

    /// After an error the next one goes over a new connection.
    async fn send(&mut self, method: &str, path: &str, headers: fmt::Arguments<'_>, body: &str) -> Result<Response> {
        self.request.clear();
        write!(self.request, "{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n{body}", self.host)?;
        let answered = tokio::time::timeout(TIMEOUT, self.exchange()).await.context("no answer came in time");
        let answered = answered.and_then(|answered| answered);
        let stays = answered.as_ref().is_ok_and(|response| !response.is_last);
        if !stays {
            self.connection = None;
        }
        answered
    }

    async fn exchange(&mut self) -> Result<Response> {
        let connection = match &mut self.connection {
            Some(kept) => kept,
            None => self.connection.insert(connect(self.address).await?),
        };
        connection.write_all(&self.request).await?;
        self.answer.clear();
        loop {
            self.answer.reserve(READ);
            ensure!(connection.read_buf(&mut self.answer).await? > 0, "the connection ended");
            if let Some(response) = Response::parse(&self.answer)? {
                return Ok(response);
            }
            ensure!(self.answer.len() <= MAX_ANSWER, "the answer is too long");
        }
    }

    fn answer_of(&self, response: &Response) -> Answer {
        let body = &self.answer[response.body.clone()];
        match (response.status, serde_json::from_slice(body)) {
            (200, Ok(AnswerBody { version: Some(version), token: Some(token), order, .. })) => {
                Answer::Accepted { version, token, order }
            }
            (422, Ok(AnswerBody { rejection: Some(rejection), .. })) => Answer::Rejected(rejection),
            (502..=504, _) => Answer::Later { after: Duration::from_secs(response.retry_after.unwrap_or(1)) },
            (status, _) => Answer::Odd(format!("{status} {}", String::from_utf8_lossy(body))),
        }
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Response {
    /// `None`: more is to come.
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(begin) = head.parse(bytes)? else { return Ok(None) };
        let status = head.code.context("an answer has a status")?;
        let mut length = if matches!(status, 204 | 304) { Some(0) } else { None };
        let (mut etag, mut retry_after, mut is_last) = (None, None, false);
        for header in &*head.headers {
            let value = || std::str::from_utf8(header.value).context("a header is text");
            match header.name {
                name if name.eq_ignore_ascii_case("content-length") => length = length.or(Some(value()?.parse()?)),
                name if name.eq_ignore_ascii_case("etag") => etag = Some(value()?.to_owned()),
                name if name.eq_ignore_ascii_case("retry-after") => retry_after = value()?.parse().ok(),
                name if name.eq_ignore_ascii_case("connection") => is_last = value()?.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        // None of the servers sends pieces.
        let Some(length) = length else { bail!("an answer has no length") };
        ensure!(length <= MAX_ANSWER, "the answer is too long");
        let body = begin..begin + length;
        Ok((body.end <= bytes.len()).then_some(Self { status, etag, retry_after, is_last, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_once_it_is_whole_and_only_then() {
        let text = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\nETag: \"7\"\r\nConnection: close\r\n\
            Content-Length: 4\r\n\r\nbody";
        for end in 0..text.len() {
            assert_eq!(Response::parse(&text[..end]).unwrap(), None, "{end} bytes");
        }
        let body = text.len() - 4..text.len();
        let whole = Response { status: 503, etag: Some("\"7\"".into()), retry_after: Some(2), is_last: true, body };
        assert_eq!(Response::parse(text).unwrap(), Some(whole));
    }

    #[test]
    fn an_unchanged_page_has_no_body_whatever_length_it_tells() {
        let text = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(Response::parse(text).unwrap().unwrap().body.len(), 0);
    }

    #[test]
    fn an_answer_without_a_length_is_an_error() {
        assert!(Response::parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
