//! The stream a session's HTTP/2 connection runs on, and the pump's end of it. In memory only.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How much a session may have written that the transport has not taken yet.
const OUTBOUND_BYTES: usize = 64 * 1024;

/// One session's data, both ways: put HTTP/2 on it. It reads an end of file when the session is over.
#[derive(Debug)]
pub struct SessionStream {
    inbound: UnboundedReceiver<Bytes>,
    current: Bytes,
    waiting: Arc<Waiting>,
    outbound: DuplexStream,
}

/// How much lies in `inbound`; the channel itself does not count bytes.
#[derive(Debug, Default)]
struct Waiting {
    bytes: AtomicUsize,
    drained: Notify,
}

/// The other end of a [`SessionStream`], held by the pump.
#[derive(Debug)]
pub(super) struct PumpEnd {
    /// What the session will read.
    pub(super) inbound: Inbound,
    /// What the session wrote.
    pub(super) outbound: DuplexStream,
}

/// The way into a session: a channel that counts the bytes in it.
#[derive(Debug)]
pub(super) struct Inbound {
    sender: UnboundedSender<Bytes>,
    waiting: Arc<Waiting>,
    limit: usize,
}

pub(super) fn pair(inbound_limit: usize) -> (SessionStream, PumpEnd) {
    let (sender, receiver) = unbounded_channel();
    let (near, far) = duplex(OUTBOUND_BYTES);
    let waiting = Arc::new(Waiting::default());
    let session = SessionStream {
        inbound: receiver,
        current: Bytes::new(),
        waiting: Arc::clone(&waiting),
        outbound: near,
    };
    (
        session,
        PumpEnd {
            inbound: Inbound {
                sender,
                waiting,
                limit: inbound_limit,
            },
            outbound: far,
        },
    )
}

impl Inbound {
    /// Hands bytes to the session; lost when it is gone, which its `outbound` tells.
    pub(super) fn deliver(&self, data: Bytes) {
        self.waiting.bytes.fetch_add(data.len(), Ordering::AcqRel);
        // A closed channel is not an error here: the end of `outbound` ends the session.
        drop(self.sender.send(data));
    }

    /// True when the session has more to read than it should.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.bytes.load(Ordering::Acquire) > self.limit && !self.sender.is_closed()
    }

    /// Resolves when there is room again, or the session is gone.
    pub(super) async fn has_room(&self) {
        loop {
            let drained = self.waiting.drained.notified();
            if !self.is_full() {
                return;
            }
            tokio::select! {
                () = drained => {}
                () = self.sender.closed() => return,
            }
        }
    }
}

impl AsyncRead for SessionStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.current.is_empty() {
            match self.inbound.poll_recv(cx) {
                Poll::Ready(Some(data)) => self.current = data,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        let taken = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current[..taken]);
        self.current.advance(taken);
        self.waiting.bytes.fetch_sub(taken, Ordering::AcqRel);
        self.waiting.drained.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SessionStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.outbound).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outbound).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outbound).poll_shutdown(cx)
    }
}
