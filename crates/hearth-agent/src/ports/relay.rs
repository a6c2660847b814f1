//! A connection of the host, passed on: the request's body is written, what can be read becomes the reply's body. Each direction ends on its
//! own, and is held back by its slower side.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use crate::reply::{self, Reply};

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// Begins to pass on in both directions, until the session is over.
pub(crate) fn start(
    reader: impl AsyncRead + Send + 'static,
    writer: impl AsyncWrite + Unpin + Send + 'static,
    body: Incoming,
    session: &CancellationToken,
) -> Reply {
    let broken_off = session.child_token();
    let writing = pass_on(body, writer);
    let ended = broken_off.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = writing => {}
            () = ended.cancelled() => {}
        }
    });
    reply::stream(Reading {
        chunks: Box::pin(ReaderStream::with_capacity(reader, READ_BYTES)),
        ended: false,
        broken_off,
    })
}

/// The host's direction, to its end.
async fn pass_on(mut body: Incoming, mut writer: impl AsyncWrite + Unpin) {
    while let Some(frame) = body.frame().await {
        // The host has broken off: so do we, without an orderly end.
        let Ok(frame) = frame else { return };
        let Ok(chunk) = frame.into_data() else { continue };
        if writer.write_all(&chunk).await.is_err() {
            return;
        }
    }
    // Fails when the other side is gone, which then knows it.
    drop(writer.shutdown().await);
}

/// The other direction. One that the host drops before its end breaks the first one off, too.
struct Reading<R> {
    chunks: Pin<Box<ReaderStream<R>>>,
    ended: bool,
    broken_off: CancellationToken,
}

impl<R: AsyncRead> Stream for Reading<R> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let chunk = ready!(self.chunks.as_mut().poll_next(cx));
        self.ended |= chunk.is_none();
        Poll::Ready(chunk)
    }
}

impl<R> Drop for Reading<R> {
    fn drop(&mut self) {
        if !self.ended {
            self.broken_off.cancel();
        }
    }
}
