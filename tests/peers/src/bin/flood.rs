//! Reservations at a fixed rate that does not depend on the answers, to overload a server.
//!
//! Sending never waits for an answer. A request takes an idle connection; if there is none, it is pipelined behind
//! another request, as HTTP/1.1 allows. There have to be more connections than requests that the server admits at once,
//! or requests stay in the kernel's buffers and the server refuses nothing. Requests that could not be sent in time are
//! left out and reported, so that a slow client is not taken for a slow server. The client has one thread, because it
//! shares the cores with the server; it polls for answers once a millisecond.
//!
//! `ADDRESS`, `SECONDS`, `RATE` per second, `CONNECTIONS` (default 4,000), `PRODUCTS`, `PREFIX` of their ids, `RUN`:
//! the prefix of this run's orders.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use peers::setting;

const TICK: Duration = Duration::from_millis(1);
/// Maximum delay of a request; later ones are left out.
const IN_TIME: Duration = Duration::from_millis(20);
/// Time to wait for answers after the last request was due.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum number of requests between two polls for answers, if the rate leaves no pause.
const MAX_SENT_AT_ONCE: u64 = 512;
/// Upper bound of the recorded latencies, in microseconds.
const MAX_MICROS: u64 = 60_000_000;

fn main() -> Result<()> {
    let (duration, rate) = (setting::duration()?, setting::required("RATE")?.parse::<f64>()?);
    let mut client = Client::connect(&setting::required("ADDRESS")?, setting::or("CONNECTIONS", 4_000)?)?;
    let requests = Requests::new()?;
    let due_by = |time: Duration| (time.as_secs_f64() * rate) as u64;
    let mut next = 0;
    let began = Instant::now();
    loop {
        let now = began.elapsed();
        if now >= duration {
            break;
        }
        next = next.max(due_by(now.saturating_sub(IN_TIME)));
        let end = due_by(now).min(next + MAX_SENT_AT_ONCE);
        for number in next..end {
            let due = began + Duration::from_secs_f64(number as f64 / rate);
            client.send(due, |to| requests.write(number, to))?;
        }
        let is_behind = end == next + MAX_SENT_AT_ONCE;
        next = end;
        if !is_behind {
            thread::sleep(TICK);
        }
        client.take_answers()?;
    }
    while client.waiting > 0 && began.elapsed() < duration + PATIENCE {
        thread::sleep(TICK);
        client.take_answers()?;
    }
    client.print(due_by(duration), duration);
    Ok(())
}

/// Requests assembled by hand, because this costs little.
struct Requests {
    /// Heads, by product.
    heads: Vec<Vec<u8>>,
    run: String,
}

impl Requests {
    fn new() -> Result<Self> {
        let (address, prefix) = (setting::required("ADDRESS")?, setting::required("PREFIX")?);
        let run = setting::required("RUN")?;
        let length = Self::body(&run, 0).len();
        let head = |product: u32| {
            format!(
                "POST /v1/products/{prefix}{product}/reserve HTTP/1.1\r\nHost: {address}\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            )
        };
        let heads = (1..=setting::or("PRODUCTS", 1)?).map(|product| head(product).into_bytes());
        Ok(Self { heads: heads.collect(), run })
    }

    fn body(run: &str, number: u64) -> String {
        format!(r#"{{"order":"{run}-{number:09}","quantity":1}}"#)
    }

    fn write(&self, number: u64, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.heads[number as usize % self.heads.len()]);
        to.extend_from_slice(Self::body(&self.run, number).as_bytes());
    }
}

struct Client {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    /// Connections without an outstanding answer; the one used last is on top.
    idle: Vec<usize>,
    /// Next connection to use if none is idle.
    turn: usize,
    /// Number of requests without an answer.
    waiting: u64,
    sent: u64,
    refused: u64,
    failed: u64,
    accepted: Histogram<u64>,
}

struct Connection {
    stream: TcpStream,
    /// Due times of the requests without an answer.
    due: VecDeque<Instant>,
    unsent: Vec<u8>,
    unread: Vec<u8>,
    is_gone: bool,
}

impl Client {
    fn connect(address: &str, connections: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let open = |index| {
            let stream =
                std::net::TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
            let (due, unsent, unread) = (VecDeque::new(), Vec::new(), Vec::new());
            anyhow::Ok(Connection { stream, due, unsent, unread, is_gone: false })
        };
        Ok(Self {
            connections: (0..connections).map(open).collect::<Result<_>>()?,
            poll,
            events: Events::with_capacity(connections),
            idle: (0..connections).collect(),
            turn: 0,
            waiting: 0,
            sent: 0,
            refused: 0,
            failed: 0,
            accepted: Histogram::new_with_max(MAX_MICROS, 3)?,
        })
    }

    fn send(&mut self, due: Instant, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let index = self.idle.pop().unwrap_or_else(|| {
            self.turn = (self.turn + 1) % self.connections.len();
            self.turn
        });
        let connection = &mut self.connections[index];
        self.sent += 1;
        if connection.is_gone {
            self.failed += 1;
            return Ok(());
        }
        self.waiting += 1;
        connection.due.push_back(due);
        write(&mut connection.unsent);
        connection.flush()
    }

    /// Reads available answers.
    fn take_answers(&mut self) -> Result<()> {
        self.poll.poll(&mut self.events, Some(Duration::ZERO))?;
        let now = Instant::now();
        for event in &self.events {
            let Token(index) = event.token();
            let connection = &mut self.connections[index];
            connection.flush()?;
            if !event.is_readable() || connection.due.is_empty() {
                continue;
            }
            connection.read()?;
            while let Some(status) = connection.answer()? {
                let due = connection.due.pop_front().context("an answer without a request")?;
                self.waiting -= 1;
                match status {
                    200 => {
                        let after = u64::try_from(now.saturating_duration_since(due).as_micros()).unwrap_or(MAX_MICROS);
                        self.accepted.saturating_record(after);
                    }
                    503 => self.refused += 1,
                    _ => self.failed += 1,
                }
            }
            if connection.is_gone {
                let lost = connection.due.drain(..).len() as u64;
                self.failed += lost;
                self.waiting -= lost;
            } else if connection.due.is_empty() {
                self.idle.push(index);
            }
        }
        Ok(())
    }

    /// Prints the measurements. A request without an answer has failed.
    fn print(&self, offered: u64, elapsed: Duration) {
        let at = |quantile| (!self.accepted.is_empty()).then(|| self.accepted.value_at_quantile(quantile));
        let line = serde_json::json!({
            "offered": offered,
            "sent": self.sent,
            "accepted": self.accepted.len(),
            "refused": self.refused,
            "failed": self.failed + self.waiting,
            "seconds": elapsed.as_secs_f64(),
            "p50_us": at(0.5),
            "p99_us": at(0.99),
        });
        println!("{line}");
    }
}

impl Connection {
    /// Sends as much as the kernel accepts.
    fn flush(&mut self) -> Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(taken) => drop(self.unsent.drain(..taken)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    return Err(error).context("cannot send");
                }
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let mut part = [0; 4096];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => self.is_gone = true,
                Ok(read) => {
                    self.unread.extend_from_slice(&part[..read]);
                    // A short read means that nothing more is available.
                    if read == part.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot read"),
            }
            return Ok(());
        }
    }

    /// Removes the next answer from the buffer if it is complete, and returns its status.
    fn answer(&mut self) -> Result<Option<u16>> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head) = answer.parse(&self.unread)? else { return Ok(None) };
        let status = answer.code.context("an answer without a status")?;
        let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let Some(length) = length else { bail!("an answer of an unknown length: {status}") };
        let whole = head + str::from_utf8(length.value)?.parse::<usize>()?;
        if self.unread.len() < whole {
            return Ok(None);
        }
        self.unread.drain(..whole);
        Ok(Some(status))
    }
}
