//! Between the connection, which is asynchronous, and tar streams, which are read and written the blocking way on another thread.

use std::io::{self, Read, Write};

use bytes::{Buf as _, Bytes};
use futures::Stream;
use tokio::sync::mpsc;

/// Chunks on their way.
const CHUNKS: usize = 8;
/// How long one is on its way out.
const CHUNK_BYTES: usize = 64 * 1024;

/// What is written becomes a stream. Dropping it without [`Writer::end`] makes that an error.
pub(super) struct Writer(mpsc::Sender<Option<Bytes>>);

/// What is written at the other end, in chunks.
pub(super) fn to_stream() -> (
    io::BufWriter<Writer>,
    impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) {
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let stream = futures::stream::unfold(Some(chunks), async |chunks| {
        let mut chunks = chunks?;
        match chunks.recv().await {
            Some(Some(chunk)) => Some((Ok(chunk), Some(chunks))),
            Some(None) => None,
            None => Some((Err(io::ErrorKind::ConnectionAborted.into()), None)),
        }
    });
    (io::BufWriter::with_capacity(CHUNK_BYTES, Writer(sender)), stream)
}

impl Writer {
    /// All has been written.
    pub(super) fn end(self) -> io::Result<()> {
        self.0.blocking_send(None).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Some(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The sending end of a [`Reader`]. Dropping it without `None`, the end, makes that an error.
pub(super) type Sender = mpsc::Sender<Option<Bytes>>;

/// Chunks as a blocking reader.
pub(super) struct Reader {
    chunks: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    is_over: bool,
}

/// What is sent at one end is read at the other.
pub(super) fn to_reader() -> (Sender, Reader) {
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let reader = Reader {
        chunks,
        current: Bytes::new(),
        is_over: false,
    };
    (sender, reader)
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.is_over {
            match self.chunks.blocking_recv() {
                Some(Some(chunk)) => self.current = chunk,
                Some(None) => self.is_over = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let taken = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}
