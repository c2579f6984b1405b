//! One connection to an HTTP server.

use anyhow::{Context, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub struct Connection {
    address: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects to `address`, given as `host:port`.
    pub async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // The task ends with the sender. An error in it fails the request in flight.
        tokio::spawn(connection);
        Ok(Self { address: address.to_owned(), sender })
    }

    /// Sends a body and reads the whole answer.
    pub async fn post(&mut self, path: &str, content_type: &str, body: String) -> Result<(StatusCode, Bytes)> {
        let request = Request::post(path).header(HOST, &self.address).header(CONTENT_TYPE, content_type);
        self.send(request.body(Full::new(Bytes::from(body)))?).await
    }

    /// Sends a query that waits for the state that `token` names.
    pub async fn get(&mut self, path: &str, token: &str, wait_secs: u32) -> Result<(StatusCode, Bytes)> {
        let request = Request::get(path)
            .header(HOST, &self.address)
            .header("consistency-token", token)
            .header("prefer", format!("wait={wait_secs}"));
        self.send(request.body(Full::default())?).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}
