//! `hearth-agent relay`: the host's way to the server in a container. The host starts it through the container engine, whose stream to
//! a command needs no network path; bytes of its standard input go to the server's socket, and the server's come out.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Between two attempts: the host may come before the server listens.
const PAUSE: Duration = Duration::from_millis(20);
/// As much as a pipe holds.
const BUFFER_BYTES: usize = 64 * 1024;

/// Waits for the server, then carries bytes until one side ends. The host ends it by closing its input.
pub(crate) fn run(socket: &Path) -> io::Result<()> {
    let stream = connect(socket)?;
    let server = stream.try_clone()?;
    // Not joined: it waits for input that may never come when the server has ended.
    thread::spawn(move || {
        // Whatever ends it, the server is told that nothing more comes.
        drop(carry(io::stdin().lock(), &server));
        drop(server.shutdown(Shutdown::Write));
    });
    // Unbuffered: a line buffer would hold frames back.
    let output = std::fs::File::from(rustix::io::dup(rustix::stdio::stdout())?);
    carry(&stream, output)
}

/// Reads and writes. `io::copy` would splice, and a splice that waits for the socket holds the pipe's lock: the other holder of the pipe, the
/// container engine, waits in the kernel without end.
fn carry(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket) {
            Err(error) if is_early(error.kind()) && !is_abandoned()? => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// The server is not there yet.
fn is_early(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Whether the host has gone away while we wait.
fn is_abandoned() -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout};
    let input = rustix::stdio::stdin();
    let mut asked = [PollFd::new(input, PollFlags::POLLIN)];
    nix::poll::poll(&mut asked, PollTimeout::ZERO)?;
    Ok(asked[0]
        .revents()
        .is_some_and(|found| found.contains(PollFlags::POLLHUP)))
}
