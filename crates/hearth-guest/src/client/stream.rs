//! A connection into the VM as a byte stream: each direction is one body of an HTTP/2 request, held back by its flow control, and ends on
//! its own.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{AgentClient, AgentError, accepted};

/// Longest chunk that is handed to HTTP/2 at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// A byte stream between the host and something in the VM. Dropping it before both directions have ended breaks the connection off.
pub struct GuestStream {
    receive: RecvStream,
    send: SendStream<Bytes>,
    /// Received, and not read yet.
    current: Bytes,
    read_ended: bool,
    write_ended: bool,
}

impl fmt::Debug for GuestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestStream")
            .field("read_ended", &self.read_ended)
            .field("write_ended", &self.write_ended)
            .finish_non_exhaustive()
    }
}

impl AgentClient {
    /// A `POST` whose both bodies are the directions of a stream. Comes back when the agent has connected it.
    pub(super) async fn open_stream(&self, target: &str) -> Result<GuestStream, AgentError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://agent{target}"))
            .body(())
            .map_err(|error| AgentError::Protocol(error.to_string()))?;
        let mut sender = self.sender.clone().ready().await?;
        let (reply, send) = sender.send_request(request, false)?;
        let reply = accepted(reply.await?).await?;
        Ok(GuestStream {
            receive: reply.into_body(),
            send,
            current: Bytes::new(),
            read_ended: false,
            write_ended: false,
        })
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.current.is_empty() && !this.read_ended {
            match ready!(this.receive.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    // Room for as much again; only one chunk is ever held here.
                    this.receive
                        .flow_control()
                        .release_capacity(chunk.len())
                        .map_err(broken)?;
                    this.current = chunk;
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => this.read_ended = true,
            }
        }
        let taken = this.current.len().min(buffer.remaining());
        buffer.put_slice(&this.current.split_to(taken));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.write_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        this.send.reserve_capacity(bytes.len().min(CHUNK_BYTES));
        // Capacity is announced once: what was left over from before is asked for first.
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                // The agent has closed the stream.
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let taken = this.send.capacity().min(bytes.len()).min(CHUNK_BYTES);
        let chunk = Bytes::copy_from_slice(&bytes[..taken]);
        Poll::Ready(this.send.send_data(chunk, false).map(|()| taken).map_err(broken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's own task sends what it was given.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_ended {
            self.write_ended = true;
            // Fails only when the stream is closed already.
            drop(self.send.send_data(Bytes::new(), true));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        if !(self.read_ended && self.write_ended) {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}
