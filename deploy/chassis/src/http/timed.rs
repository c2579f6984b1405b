//! A TCP stream whose writes fail if the peer does not read. It is below TLS, which buffers what the peer has not read.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Bytes that a peer must read within the time limit. A peer that reads less is treated like one that reads nothing.
const MIN_PROGRESS_BYTES: usize = 16 * 1024;

/// A TCP stream with a time limit for the peer to read.
#[derive(Debug)]
pub(super) struct TimedStream {
    tcp: TcpStream,
    write_timeout: Duration,
    stall: Option<Stall>,
}

/// A period in which the peer reads less than is offered.
#[derive(Debug)]
struct Stall {
    ends: Pin<Box<Sleep>>,
    taken: usize,
}

impl TimedStream {
    pub(super) fn new(tcp: TcpStream, write_timeout: Duration) -> Self {
        Self { tcp, write_timeout, stall: None }
    }

    /// Calls `write`; fails if the peer has stalled for too long.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        offered: usize,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match write(Pin::new(&mut self.tcp), context) {
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
}

impl AsyncRead for TimedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, bytes.len(), |tcp, context| tcp.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered = parts.iter().map(|part| part.len()).sum();
        self.get_mut().write(context, offered, |tcp, context| tcp.poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(context)
    }
}
