//! A request's body for code that reads and writes the blocking way, on a thread of its own.
//!
//! Files are written on Tokio's blocking threads, or on one that is a user's: a disk that is slow for a moment must not keep the
//! agent from answering. Only a few chunks of the body are ever in memory.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::fs::user;
use crate::reply::Fault;
use crate::users::Identity;

/// Chunks on their way from the connection to the disk; each is one HTTP/2 frame of 16 KiB or so.
const CHUNKS: usize = 8;

/// The body as a blocking reader. A body that breaks off is an error, never an end of file.
#[derive(Debug)]
pub(crate) struct BodyReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let taken = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}

/// Runs `work` with the body on a blocking thread, of this user where there is one, and feeds it.
pub(crate) async fn with_reader<T, F>(mut body: Incoming, user: Option<&Identity>, work: F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: FnOnce(BodyReader) -> Result<T, Fault> + Send + 'static,
{
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let work = move || {
        work(BodyReader {
            chunks,
            current: Bytes::new(),
        })
    };
    let mut worker = std::pin::pin!(user::run(user, work));
    // When this future is dropped (the host gave up), so is the feeder, whose guard below makes that an error.
    let feeder = async move {
        let mut guard = BrokenOff(Some(sender));
        while let Some(frame) = body.frame().await {
            let chunk = match frame {
                Ok(frame) => frame.into_data().map_err(|_| io::ErrorKind::InvalidData.into()),
                Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)),
            };
            let failed = chunk.is_err();
            let Some(sender) = &guard.0 else { return };
            if sender.send(chunk).await.is_err() || failed {
                break;
            }
        }
        guard.0 = None;
    };
    tokio::select! {
        result = &mut worker => result,
        () = feeder => worker.await,
    }
}

/// Tells the worker that the rest will not come, unless it has been disarmed by a complete body.
struct BrokenOff(Option<mpsc::Sender<io::Result<Bytes>>>);

impl Drop for BrokenOff {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let error = io::Error::new(io::ErrorKind::ConnectionAborted, "the host gave up");
            // When the queue is full, a task delivers it after what is already there.
            if let Err(mpsc::error::TrySendError::Full(error)) = sender.try_send(Err(error)) {
                tokio::spawn(async move { drop(sender.send(error).await) });
            }
        }
    }
}
