//! A connection's stream with two features that hyper lacks: a time limit for answers that are not read, and a problem
//! in place of a bare refusal.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep, timeout};

use crate::border::{Border, X_REQUEST_ID};

/// Bytes that a peer must read within the time limit. A peer that reads less is treated like one that reads nothing.
const MIN_PROGRESS_BYTES: usize = 16 * 1024;

/// Time for which a refused peer may continue to send. Closing the connection earlier would reset it, and the peer
/// might lose the answer.
const LINGER: Duration = Duration::from_secs(2);

/// A TCP stream whose writes fail if the peer does not read.
#[derive(Debug)]
pub(super) struct Stream {
    /// The stream; `None` after a refusal.
    tcp: Option<TcpStream>,
    refusals: Option<oneshot::Sender<Refusal>>,
    write_timeout: Duration,
    stall: Option<Stall>,
}

/// A period in which the peer reads less than is offered.
#[derive(Debug)]
struct Stall {
    ends: Pin<Box<Sleep>>,
    taken: usize,
}

/// A connection whose last request had a head that hyper could not parse.
#[derive(Debug)]
pub(super) struct Refusal {
    tcp: TcpStream,
    /// hyper's answer, which has no body.
    head: String,
}

impl Stream {
    /// Returns the stream, and a channel that receives a refusal while hyper still owns the stream.
    pub(super) fn new(tcp: TcpStream, write_timeout: Duration) -> (Self, oneshot::Receiver<Refusal>) {
        let (refusals, receiver) = oneshot::channel();
        (Self { tcp: Some(tcp), refusals: Some(refusals), write_timeout, stall: None }, receiver)
    }

    /// Calls `write`; fails if the peer has stalled for too long.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        offered: usize,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Some(tcp) = &mut self.tcp else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        match write(Pin::new(tcp), context) {
            Poll::Ready(Ok(taken)) => {
                self.stall.take_if(|stall| {
                    stall.taken += taken;
                    taken == offered || stall.taken >= MIN_PROGRESS_BYTES
                });
                Poll::Ready(Ok(taken))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let begin = || Stall { ends: Box::pin(sleep(self.write_timeout)), taken: 0 };
                ready!(self.stall.get_or_insert_with(begin).ends.as_mut().poll(context));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer is not reading its answer")))
            }
        }
    }

    fn hand_over(&mut self, head: String) -> Poll<io::Result<usize>> {
        let length = head.len();
        let handed_over = match (self.tcp.take(), self.refusals.take()) {
            (Some(tcp), Some(refusals)) => refusals.send(Refusal { tcp, head }).is_ok(),
            _ => false,
        };
        Poll::Ready(if handed_over { Ok(length) } else { Err(io::ErrorKind::BrokenPipe.into()) })
    }
}

/// Returns the head if `written` is a refusal by hyper itself. Answers of the border have a request id, and other parts
/// of an answer are no head.
fn bare_refusal(written: &[u8]) -> Option<String> {
    if !written.starts_with(b"HTTP/1.1 4") {
        return None;
    }
    let head = str::from_utf8(written).ok()?.strip_suffix("\r\n\r\n")?;
    let is_bare = !head.contains("\r\n\r\n") && !head.contains(X_REQUEST_ID.as_str());
    is_bare.then(|| format!("{head}\r\n\r\n"))
}

impl Refusal {
    /// Sends the problem, then drains the rest of the request.
    pub(super) async fn answer(mut self, border: &Border) {
        let answer = border.complete_refusal(&self.head);
        let told = async {
            self.tcp.write_all(&answer).await?;
            self.tcp.shutdown().await?;
            let mut ignored = [0; 4096];
            while self.tcp.read(&mut ignored).await? > 0 {}
            io::Result::Ok(())
        };
        // After a failure or timeout the peer is gone, so the result is ignored.
        let _gone = timeout(LINGER, told).await;
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().tcp {
            Some(tcp) => Pin::new(tcp).poll_read(context, buffer),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        if let Some(head) = bare_refusal(bytes) {
            return stream.hand_over(head);
        }
        stream.write(context, bytes.len(), |tcp, context| tcp.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        // A bare refusal has a single part, its head.
        if let [head] = parts
            && let Some(head) = bare_refusal(head)
        {
            return stream.hand_over(head);
        }
        let offered = parts.iter().map(|part| part.len()).sum();
        stream.write(context, offered, |tcp, context| tcp.poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().tcp {
            Some(tcp) => Pin::new(tcp).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().tcp {
            Some(tcp) => Pin::new(tcp).poll_shutdown(context),
            None => Poll::Ready(Ok(())),
        }
    }
}
