//! The guest's end of a virtio-serial port, for Tokio.
//!
//! Two traps of the kernel's `virtio_console` shape this. Without a host, `read` returns 0 and `poll` reports a hang-up
//! at once and for ever, and Tokio never forgets a hang-up: a plain `AsyncFd` would spin. And there is no event "the host
//! is back" except that the port's wait queue is woken. So an epoll of our own watches the port edge-triggered, and
//! Tokio watches that epoll, which only ever becomes readable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// Where the kernel lists the ports, each a folder named like its device, with a file `name`.
const PORTS: &str = "/sys/class/virtio-ports";

/// Pauses while the port is not there yet: short at first, because the host is waiting for us.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// In case the kernel did not say that the host is back.
const SAFETY_NET: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Edges(Epoll);

impl AsRawFd for Edges {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

#[derive(Debug)]
pub(crate) struct Port {
    file: File,
    edges: AsyncFd<Edges>,
}

/// One direction of a port. Both must be polled by the same task: the kernel's edges do not say which they are for.
#[derive(Debug)]
pub(crate) struct PortHalf(Rc<Port>);

impl Port {
    /// Opens the port called `name`, as soon as there is one and no other process has it open.
    pub(crate) async fn wait_for(name: &str) -> io::Result<Self> {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(path) = find(Path::new(PORTS), name) {
                match Self::open(&path) {
                    // Not made yet, or an older agent is still ending.
                    Err(error) if is_temporary(&error) => {}
                    result => return result,
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&file, EpollEvent::new(interest, 0))?;
        Ok(Self {
            file,
            edges: register(Edges(epoll))?,
        })
    }

    /// One direction for a reader or writer.
    pub(crate) fn half(self: &Rc<Self>) -> PortHalf {
        PortHalf(Rc::clone(self))
    }

    /// Waits until a host is connected.
    pub(crate) async fn wait_for_host(&self) -> io::Result<()> {
        loop {
            let mut port = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            nix::poll::poll(&mut port, PollTimeout::ZERO)?;
            if !port[0]
                .revents()
                .is_some_and(|found| found.contains(PollFlags::POLLHUP))
            {
                return Ok(());
            }
            let edge = std::future::poll_fn(|cx| self.poll_edge(cx));
            if let Ok(result) = tokio::time::timeout(SAFETY_NET, edge).await {
                result?;
            }
        }
    }

    /// Ready when something has changed since it was last ready.
    fn poll_edge(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = std::task::ready!(self.edges.poll_read_ready(cx))?;
        let mut events = [EpollEvent::empty()];
        while guard.get_inner().0.wait(&mut events, EpollTimeout::ZERO)? > 0 {}
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }

    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(&File) -> nix::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match attempt(&self.file) {
                Ok(done) => return Poll::Ready(Ok(done)),
                Err(Errno::EAGAIN) => std::task::ready!(self.poll_edge(cx))?,
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncRead for PortHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let space = buf.initialize_unfilled();
        let read = std::task::ready!(self.0.poll_io(cx, |file| nix::unistd::read(file, space)))?;
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_io(cx, |file| nix::unistd::write(file, data))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for descriptors that change; this one is owned and never does"
)]
fn register(edges: Edges) -> io::Result<AsyncFd<Edges>> {
    AsyncFd::with_interest(edges, Interest::READABLE)
}

fn is_temporary(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::EBUSY as i32)
}

/// The device of the port called `name`.
fn find(ports: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(ports).ok()?;
    entries.flatten().find_map(|entry| {
        let found = std::fs::read_to_string(entry.path().join("name")).ok()?;
        (found.trim_end() == name).then(|| Path::new("/dev").join(entry.file_name()))
    })
}
