//! A buyer or watcher with one keep-alive connection, opened on first use and again after an error, as a browser does.
//!
//! Requests and answers are encoded by hand. With a general HTTP client's tasks, channels and header maps, a claim cost
//! half as much processor time again, at the expense of the servers under test.

use std::fmt;
use std::io::Write as _;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::wire::{Server, Wire};

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEADERS: usize = 64;
const MAX_ANSWER: usize = 1 << 20;
/// Size of a read, which holds most answers whole.
const READ: usize = 2 << 10;
/// Delay before a command without an answer is retried.
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct Visitor {
    server: Server,
    host: String,
    connection: Option<Box<dyn Wire>>,
    request: Vec<u8>,
    /// Bytes of the last answer.
    answer: Vec<u8>,
}

/// Outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted {
        version: u64,
        token: String,
        /// Id of the claim's order.
        order: Option<String>,
    },
    Rejected(String),
    /// The command had no effect, or its outcome is unknown; retrying it under the same key is safe.
    Later {
        after: Duration,
    },
    /// An unexpected answer.
    Odd(String),
}

#[derive(Deserialize)]
struct AnswerBody {
    version: Option<u64>,
    token: Option<String>,
    order: Option<String>,
    rejection: Option<String>,
}

/// A complete answer. `body` is its range among the bytes that were read.
#[derive(Debug, PartialEq, Eq)]
struct Response {
    status: u16,
    etag: Option<String>,
    retry_after: Option<u64>,
    /// Set if the server closes the connection.
    is_last: bool,
    body: Range<usize>,
}

impl Visitor {
    pub(crate) fn new(server: &Server) -> Self {
        let (host, server) = (server.address.to_string(), server.clone());
        Self { server, host, connection: None, request: Vec::new(), answer: Vec::new() }
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

    /// Queries a page, conditionally if an entity tag is known, and returns the current tag.
    pub(super) async fn look(&mut self, path: &str, tag: Option<&str>) -> Result<Option<String>> {
        let response = match tag {
            Some(tag) => self.send("GET", path, format_args!("If-None-Match: {tag}\r\n"), "").await?,
            None => self.send("GET", path, format_args!(""), "").await?,
        };
        let status = response.status;
        ensure!(matches!(status, 200 | 304), "{path} was answered {status}");
        Ok(response.etag)
    }

    /// Returns whether the views reach the token within ten seconds.
    pub(super) async fn is_shown(&mut self, path: &str, token: &str) -> bool {
        let headers = format_args!("Consistency-Token: {token}\r\nPrefer: wait=10\r\n");
        self.send("GET", path, headers, "").await.is_ok_and(|response| response.status == 200)
    }

    /// Sends a command without a key of its own and returns the status of the answer.
    pub(crate) async fn post(&mut self, path: &str, body: &str) -> Result<u16> {
        let headers = format_args!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        Ok(self.send("POST", path, headers, body).await?.status)
    }

    /// Queries a page past the edge's cache and returns the status of the answer.
    pub(crate) async fn get_uncached(&mut self, path: &str) -> Result<u16> {
        Ok(self.send("GET", path, format_args!("Prefer: wait=0\r\n"), "").await?.status)
    }

    /// Sends a request and returns the answer. After an error the next request opens a new connection.
    async fn send(&mut self, method: &str, path: &str, headers: fmt::Arguments<'_>, body: &str) -> Result<Response> {
        self.request.clear();
        write!(self.request, "{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n{body}", self.host)?;
        let answered = tokio::time::timeout(TIMEOUT, self.exchange()).await.context("no answer in time");
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
            None => self.connection.insert(self.server.connect().await?),
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

impl Response {
    /// Parses an answer. Returns `None` if it is incomplete.
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(begin) = head.parse(bytes)? else { return Ok(None) };
        let status = head.code.context("an answer without a status")?;
        let mut length = if matches!(status, 204 | 304) { Some(0) } else { None };
        let (mut etag, mut retry_after, mut is_last) = (None, None, false);
        for header in &*head.headers {
            let value = || std::str::from_utf8(header.value).context("a header that is not UTF-8");
            match header.name {
                name if name.eq_ignore_ascii_case("content-length") => length = length.or(Some(value()?.parse()?)),
                name if name.eq_ignore_ascii_case("etag") => etag = Some(value()?.to_owned()),
                name if name.eq_ignore_ascii_case("retry-after") => retry_after = value()?.parse().ok(),
                name if name.eq_ignore_ascii_case("connection") => is_last = value()?.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        // No server here uses chunked encoding.
        let Some(length) = length else { bail!("an answer without Content-Length") };
        ensure!(length <= MAX_ANSWER, "the answer is too long");
        let body = begin..begin + length;
        Ok((body.end <= bytes.len()).then_some(Self { status, etag, retry_after, is_last, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_parsed_once_it_is_complete() {
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
    fn a_304_has_no_body_despite_its_content_length() {
        let text = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(Response::parse(text).unwrap().unwrap().body.len(), 0);
    }

    #[test]
    fn an_answer_without_a_length_is_an_error() {
        assert!(Response::parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
