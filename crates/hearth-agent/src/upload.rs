//! A request's body for code that reads and writes the blocking way, on a thread of its own.
//!
//! Files are written on Tokio's blocking threads: a disk that is slow for a moment must not keep the agent from
//! answering. Only a few chunks of the body are ever in memory.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::reply::Fault;

/// Chunks on their way from the connection to the disk; each is one HTTP/2 frame of 16 KiB or so.
const PIECES: usize = 8;

/// The body as a blocking reader. A body that breaks off is an error, never an end of file.
#[derive(Debug)]
pub(crate) struct BodyReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let taken = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}

/// Runs `work` with the body on a blocking thread, and feeds it.
pub(crate) async fn with_reader<T, F>(mut body: Incoming, work: F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: FnOnce(BodyReader) -> Result<T, Fault> + Send + 'static,
{
    let (sender, pieces) = mpsc::channel(PIECES);
    let mut worker = tokio::task::spawn_blocking(move || {
        work(BodyReader {
            pieces,
            current: Bytes::new(),
        })
    });
    // When this future is dropped (the host gave up), so is the feeder, whose guard below makes that an error.
    let feeder = async move {
        let mut guard = BrokenOff(Some(sender));
        while let Some(frame) = body.frame().await {
            let piece = match frame {
                Ok(frame) => frame.into_data().map_err(|_| io::ErrorKind::InvalidData.into()),
                Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)),
            };
            let failed = piece.is_err();
            let Some(sender) = &guard.0 else { return };
            if sender.send(piece).await.is_err() || failed {
                break;
            }
        }
        guard.0 = None;
    };
    let result = tokio::select! {
        result = &mut worker => result,
        () = feeder => worker.await,
    };
    result.unwrap_or_else(|_| Err(Fault::from_io("the agent failed", &io::ErrorKind::Other.into())))
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
