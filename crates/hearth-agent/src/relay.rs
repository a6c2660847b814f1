//! `hearth-agent relay`: the host's way to the server in a container. The host starts it through the container engine, whose stream to
//! a command needs no network path; bytes of its standard input go to the server's socket, and the server's come out.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Between two attempts: the host may come before the server listens.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits for the server, then carries bytes until one side ends. The host ends it by closing its input.
pub(crate) fn run(socket: &Path) -> io::Result<()> {
    let stream = connect(socket)?;
    let mut server = stream.try_clone()?;
    // Not joined: it waits for input that may never come when the server has ended.
    thread::spawn(move || {
        // Whatever ends it, the server is told that nothing more comes.
        drop(io::copy(&mut io::stdin().lock(), &mut server));
        drop(server.shutdown(Shutdown::Write));
    });
    let mut reader = &stream;
    // Unbuffered: a line buffer would hold frames back.
    let mut output = std::fs::File::from(rustix::io::dup(rustix::stdio::stdout())?);
    io::copy(&mut reader, &mut output).map(drop)
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
