//! Bodies: what goes up to the agent and what comes down from it, in chunks, held back by HTTP/2's flow control.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::AsyncRead;
use tokio::sync::oneshot;
use tokio_util::io::ReaderStream;

use super::AgentError;

/// Longest chunk that is handed to HTTP/2 at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes for the agent: a whole, a stream of chunks, or nothing. A stream's error cancels the request.
pub struct Upload(BoxStream<'static, io::Result<Bytes>>);

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

impl Upload {
    /// No bytes at all.
    #[must_use]
    pub fn empty() -> Self {
        Self(stream::empty().boxed())
    }

    /// Chunks from elsewhere.
    pub fn from_stream(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self(chunks.boxed())
    }

    /// Everything a reader gives.
    pub fn from_reader(reader: impl AsyncRead + Send + 'static) -> Self {
        Self(ReaderStream::with_capacity(reader, CHUNK_BYTES).boxed())
    }

    pub(super) fn into_stream(self) -> BoxStream<'static, io::Result<Bytes>> {
        self.0
    }
}

impl From<Bytes> for Upload {
    fn from(whole: Bytes) -> Self {
        Self(stream::once(async move { Ok(whole) }).boxed())
    }
}

impl From<Vec<u8>> for Upload {
    fn from(whole: Vec<u8>) -> Self {
        Bytes::from(whole).into()
    }
}

impl From<String> for Upload {
    fn from(whole: String) -> Self {
        Bytes::from(whole).into()
    }
}

impl From<&'static str> for Upload {
    fn from(whole: &'static str) -> Self {
        Bytes::from_static(whole.as_bytes()).into()
    }
}

impl From<Option<Bytes>> for Upload {
    fn from(whole: Option<Bytes>) -> Self {
        whole.map_or_else(Self::empty, Self::from)
    }
}

/// Keeps a request's body going; dropping it before the body's end cancels the request.
#[derive(Debug)]
pub(super) struct Sending {
    /// Never sent to: that it is dropped is the message.
    _alive: Option<oneshot::Sender<()>>,
}

impl Sending {
    pub(super) fn nothing() -> Self {
        Self { _alive: None }
    }

    pub(super) fn spawn(stream: SendStream<Bytes>, body: Upload) -> Self {
        let (alive, gone) = oneshot::channel();
        tokio::spawn(send(stream, body, gone));
        Self { _alive: Some(alive) }
    }
}

/// Sends a body. A task of its own, because the stream must be reset by hand: as long as one end of it is held, a
/// dropped other end tells the agent nothing.
async fn send(mut stream: SendStream<Bytes>, body: Upload, mut gone: oneshot::Receiver<()>) {
    let mut body = body.into_stream();
    loop {
        let next = tokio::select! {
            biased;
            _ = &mut gone => return stream.send_reset(Reason::CANCEL),
            reset = std::future::poll_fn(|cx| stream.poll_reset(cx)) => { drop(reset); return; }
            next = body.next() => next,
        };
        match next {
            Some(Ok(mut chunk)) => {
                while !chunk.is_empty() {
                    stream.reserve_capacity(chunk.len().min(CHUNK_BYTES));
                    let granted = tokio::select! {
                        biased;
                        _ = &mut gone => return stream.send_reset(Reason::CANCEL),
                        granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)) => granted,
                    };
                    // The agent has closed the stream; its reply says why.
                    let Some(Ok(granted)) = granted else { return };
                    let part = chunk.split_to(granted.min(chunk.len()));
                    if stream.send_data(part, false).is_err() {
                        return;
                    }
                }
            }
            Some(Err(_)) => return stream.send_reset(Reason::CANCEL),
            None => {
                // Fails only when the stream is closed already.
                drop(stream.send_data(Bytes::new(), true));
                return;
            }
        }
    }
}

/// Bytes from the agent, in chunks. Dropping it cancels the request.
#[derive(Debug)]
pub struct Download {
    body: RecvStream,
}

impl Download {
    pub(super) fn new(body: RecvStream) -> Self {
        Self { body }
    }

    /// Everything at once; an error when it is more than `max_bytes`.
    pub async fn collect(mut self, max_bytes: usize) -> Result<Vec<u8>, AgentError> {
        let mut whole = Vec::new();
        while let Some(chunk) = self.next().await {
            let chunk = chunk?;
            if whole.len() + chunk.len() > max_bytes {
                return Err(AgentError::Protocol(format!(
                    "more than the {max_bytes} bytes allowed for it"
                )));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }
}

impl Stream for Download {
    type Item = Result<Bytes, AgentError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let chunk = std::task::ready!(self.body.poll_data(cx));
        Poll::Ready(chunk.map(|chunk| {
            let chunk = chunk?;
            // Taken by the caller: the agent may send as much again.
            self.body.flow_control().release_capacity(chunk.len())?;
            Ok(chunk)
        }))
    }
}
