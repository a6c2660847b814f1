//! The byte stream to a VM's agent. QEMU serves one client of the port at a time and lets a second one wait in silence, so
//! the driver itself ends the stream before when a new one is asked for.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use hearth_api::ids::VmId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// A second handle on a stream's connection, to end it wherever the stream is used.
type Handle = std::os::unix::net::UnixStream;

/// The stream that is open now, per VM. Keeps none open itself: one that its user dropped is closed.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<HashMap<VmId, Weak<Handle>>>);

impl Streams {
    /// Ends the stream that is open, if there is one. Its user reads end-of-file.
    pub(super) fn end(&self, id: &VmId) {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(before) = before.and_then(|weak| weak.upgrade()) {
            // Fails only when the other side has closed it already.
            let _ = before.shutdown(Shutdown::Both);
        }
    }

    /// Wraps a fresh connection so that a later `end` reaches it.
    pub(super) fn wrap(&self, id: &VmId, stream: UnixStream) -> io::Result<AgentStream> {
        let handle = Arc::new(Handle::from(stream.as_fd().try_clone_to_owned()?));
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|_, weak| weak.strong_count() > 0);
        streams.insert(id.clone(), Arc::downgrade(&handle));
        Ok(AgentStream {
            stream,
            _handle: handle,
        })
    }
}

/// One connection to the agent's port.
#[derive(Debug)]
pub(super) struct AgentStream {
    stream: UnixStream,
    _handle: Arc<Handle>,
}

impl AsyncRead for AgentStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
