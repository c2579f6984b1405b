//! Probes whether a process is ready to serve.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of characters shown of an unready service's answer, which names its missing dependencies.
const MAX_REASON_CHARS: usize = 300;

#[derive(Debug, Clone)]
pub enum Probe {
    /// Ready when a GET of the path is answered 200.
    Http { port: u16, path: &'static str },
    /// Ready when PING is answered PONG.
    Redis { port: u16 },
    /// Ready when `pg_isready` succeeds.
    Postgres { pg_isready: PathBuf, port: u16 },
    /// Ready when the port is open and the log contains the line.
    Log { line: &'static str, port: u16 },
}

impl Probe {
    /// Probes the process once. `log` is its log, in which the current life begins at byte `from`. The error is the
    /// reason why the process is not ready, for display.
    pub(crate) fn check(&self, log: &Path, from: u64) -> Result<(), String> {
        match self {
            Self::Http { port, path } => http_ok(*port, path),
            Self::Redis { port } => redis_pong(*port),
            Self::Postgres { pg_isready, port } => postgres_ready(pg_isready, *port),
            Self::Log { line, port } => {
                connect(*port)?;
                log_has(log, from, line)
            }
        }
    }
}

/// Returns whether a program listens on a local port.
pub(crate) fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

fn connect(port: u16) -> Result<TcpStream, String> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .map_err(|error| format!("cannot connect to port {port}: {error}"))?;
    let timeouts = stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
    timeouts.map_err(|error| error.to_string())?;
    Ok(stream)
}

pub(crate) fn http_ok(port: u16, path: &str) -> Result<(), String> {
    let mut stream = connect(port)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| format!("port {port}: {error}"))?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut answer).map_err(|error| format!("no answer from port {port}: {error}"))?;
    if answer.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let mut rest = String::new();
    // After a read error, the part that was received still explains the failure.
    let _ = reader.take(4096).read_to_string(&mut rest);
    let body = rest.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
    let body: String = body.chars().take(MAX_REASON_CHARS).collect();
    Err(format!("GET {path} answered {} {body}", answer.trim()))
}

fn redis_pong(port: u16) -> Result<(), String> {
    let mut stream = connect(port)?;
    let mut answer = [0; 5];
    let exchange = stream.write_all(b"PING\r\n").and_then(|()| stream.read_exact(&mut answer));
    match exchange {
        Ok(()) if &answer == b"+PONG" => Ok(()),
        Ok(()) => Err(format!("PING answered {}", String::from_utf8_lossy(&answer))),
        Err(error) => Err(format!("no answer to PING: {error}")),
    }
}

fn postgres_ready(pg_isready: &Path, port: u16) -> Result<(), String> {
    let output = Command::new(pg_isready)
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", "2"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", pg_isready.display()))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).trim().to_owned()) }
}

fn log_has(log: &Path, from: u64, line: &str) -> Result<(), String> {
    let mut text = Vec::new();
    File::open(log)
        .and_then(|mut file| {
            file.seek(SeekFrom::Start(from))?;
            file.read_to_end(&mut text)
        })
        .map_err(|error| format!("cannot read {}: {error}", log.display()))?;
    if String::from_utf8_lossy(&text).contains(line) { Ok(()) } else { Err(format!("no `{line}` in its log yet")) }
}
