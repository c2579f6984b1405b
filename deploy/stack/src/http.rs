//! A small HTTP client for the stack's own listeners on loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

const TIMEOUT: Duration = Duration::from_secs(2);

/// Returns status and body of the answer to a GET.
pub(crate) fn get(port: u16, path: &str) -> Result<(u16, String)> {
    send(port, &format!("GET {path}"), "")
}

/// Returns status and body of the answer to a POST.
pub(crate) fn post(port: u16, path: &str, body: &str) -> Result<(u16, String)> {
    send(port, &format!("POST {path}"), body)
}

/// Speaks HTTP/1.0, so that the answer ends with the connection and is not chunked.
fn send(port: u16, what: &str, body: &str) -> Result<(u16, String)> {
    let attempt = || {
        let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let head = format!("{what} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    let answer = attempt().with_context(|| format!("port {port} does not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the answer is not HTTP")?;
    Ok((status, body.to_owned()))
}
