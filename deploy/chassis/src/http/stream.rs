//! A connection's stream, which sends a problem in place of hyper's bare refusal.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::timed::TimedStream;
use crate::border::{Border, X_REQUEST_ID};

/// Time for which a refused peer may continue to send. Closing the connection earlier would reset it, and the peer
/// might lose the answer.
const LINGER: Duration = Duration::from_secs(2);

/// A connection, plain or by TLS.
pub(super) type Wire = Either<TimedStream, TlsStream<TimedStream>>;

/// A stream that hands its connection over when hyper refuses a request by itself.
pub(super) struct Stream {
    /// The connection; `None` after a refusal.
    wire: Option<Wire>,
    refusals: Option<oneshot::Sender<Refusal>>,
}

/// A connection whose last request had a head that hyper could not parse.
pub(super) struct Refusal {
    wire: Wire,
    /// hyper's answer, which has no body.
    head: String,
}

impl Stream {
    /// Returns the stream, and a channel that receives a refusal while hyper still owns the stream.
    pub(super) fn new(wire: Wire) -> (Self, oneshot::Receiver<Refusal>) {
        let (refusals, receiver) = oneshot::channel();
        (Self { wire: Some(wire), refusals: Some(refusals) }, receiver)
    }

    /// Returns the connection, unless it was handed over.
    fn wire(&mut self) -> io::Result<Pin<&mut Wire>> {
        self.wire.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn hand_over(&mut self, head: String) -> Poll<io::Result<usize>> {
        let length = head.len();
        let handed_over = match (self.wire.take(), self.refusals.take()) {
            (Some(wire), Some(refusals)) => refusals.send(Refusal { wire, head }).is_ok(),
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
            self.wire.write_all(&answer).await?;
            self.wire.shutdown().await?;
            let mut ignored = [0; 4096];
            while self.wire.read(&mut ignored).await? > 0 {}
            io::Result::Ok(())
        };
        // After a failure or timeout the peer is gone, so the result is ignored.
        let _gone = timeout(LINGER, told).await;
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Some(wire) => Pin::new(wire).poll_read(context, buffer),
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
        stream.wire()?.poll_write(context, bytes)
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
        stream.wire()?.poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Some(wire) => Pin::new(wire).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Some(wire) => Pin::new(wire).poll_shutdown(context),
            None => Poll::Ready(Ok(())),
        }
    }
}
