//! A command in a terminal: the agent holds the outer end of a pseudo terminal, the command's session has the inner one.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use hearth_guest::TerminalSize;
use hearth_guest::{FrameKind, TerminalSpec, frames};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::{read, write};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::attached::{AFTERMATH, Outcome};
use super::launcher::Reads;
use super::memory;
use super::not_started::NotStarted;
use super::plan::Plan;
use super::{Execs, Input, Output, time_is_up};

/// How much is read from the terminal at once.
const READ_BYTES: usize = 16 * 1024;
/// More than a terminal buffers when nothing reads it.
const HELD_BYTES: usize = 1024 * 1024;

pub(super) struct Terminal {
    pub(super) outer: Outer,
    /// The inner end, held so that the outer one does not end before the command has its own.
    pub(super) inner: OwnedFd,
    pub(super) path: String,
}

/// The outer end. Not one of Tokio's pipes: they take a read that does not fill its buffer for the last one, and a terminal gives less
/// than it has.
#[derive(Debug)]
pub(super) struct Outer(AsyncFd<OwnedFd>);

impl Terminal {
    pub(super) fn open(size: TerminalSize) -> io::Result<Self> {
        let outer = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&outer)?;
        unlockpt(&outer)?;
        set_size(&outer, size)?;
        let path = ptsname(&outer, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let inner = open(path.as_c_str(), flags, Mode::empty())?;
        fcntl_setfl(&outer, OFlags::RDWR | OFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "the end is owned and nobody replaces it; what replaced this is unsafe code"
        )]
        let outer = AsyncFd::new(outer)?;
        Ok(Self {
            outer: Outer(outer),
            inner,
            path: path.into_string().map_err(io::Error::other)?,
        })
    }
}

impl Outer {
    /// Reads what the terminal shows. An error, or nothing, when no process has its inner end open any more.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let reading = self
            .0
            .async_io(Interest::READABLE, |outer| Ok(read(outer, &mut *buffer)?));
        reading.await
    }

    /// What is there, without waiting.
    fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(read(self.0.get_ref(), buffer)?)
    }

    /// Types something: waits while the command does not read.
    pub(super) async fn type_in(&self, mut chunk: &[u8]) -> io::Result<()> {
        while !chunk.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |outer| Ok(write(outer, chunk)?));
            chunk = &chunk[written.await?..];
        }
        Ok(())
    }

    pub(super) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        set_size(self.0.get_ref(), size)
    }
}

fn set_size(outer: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(outer, size)?)
}

pub(super) async fn run(
    execs: &Execs,
    plan: Plan,
    spec: &TerminalSpec,
    input: Input,
    output: Output,
    session: CancellationToken,
) {
    let (start, began) = (Instant::now(), memory::now());
    let _running = execs.pre_started.begin();
    let Plan { mut order, script } = plan;
    let terminal = match Terminal::open(spec.size) {
        Ok(terminal) => terminal,
        Err(error) => {
            let fault = NotStarted::ours(format!("no terminal could be made: {error}"));
            return output.end(fault.into()).await;
        }
    };
    order.reads = Reads::Terminal(terminal.path.clone());
    let mut started = match execs.start(order).await {
        Ok(started) => started,
        Err(fault) => return output.end(fault.into()).await,
    };
    let Terminal { outer, inner, .. } = terminal;
    let over = CancellationToken::new();
    let shown = show(&outer, output.clone(), &over);
    let typed = feed(input, &outer);
    tokio::pin!(shown, typed);
    let (mut shows, mut types) = (true, true);
    let outcome = loop {
        tokio::select! {
            biased;
            ended = started.child.wait() => break Outcome::Ended(ended),
            () = time_is_up(start, spec.command.timeout_ms) => break Outcome::TimedOut,
            () = output.caller_gone() => break Outcome::CallerGone,
            () = session.cancelled() => break Outcome::CallerGone,
            () = &mut typed, if types => types = false,
            () = &mut shown, if shows => shows = false,
        }
    };
    let end = outcome
        .into_end(&started.status, &started.tree, &mut started.child, start, began)
        .await;
    // The outer end ends after what the command showed last, unless something else holds the inner one.
    drop(inner);
    over.cancel();
    if shows {
        shown.await;
    }
    output.end(end).await;
    execs.cgroups.retire(started.tree.cgroup);
    drop(script);
}

/// Everything that the terminal shows, until no process has its inner end open or the caller is gone; or until the command is
/// over and nothing more comes.
async fn show(outer: &Outer, output: Output, over: &CancellationToken) {
    let aftermath = async {
        over.cancelled().await;
        tokio::time::sleep(AFTERMATH).await;
    };
    tokio::pin!(aftermath);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            () = &mut aftermath => break,
            // The outer end says EIO when the inner one is closed.
            read = outer.read(&mut buffer) => read.unwrap_or(0),
        };
        if read == 0 || !output.send(FrameKind::Stdout, &buffer[..read]).await {
            return;
        }
    }
    // A caller who took its time gets what lies there still.
    let mut rest = HELD_BYTES;
    while let Ok(more @ 1..) = outer.read_now(&mut buffer) {
        rest = rest.saturating_sub(more);
        if rest == 0 || !output.send(FrameKind::Stdout, &buffer[..more]).await {
            return;
        }
    }
}

/// What is typed, and the terminal's size: a command that does not read holds back the host, not the agent.
async fn feed(mut input: Input, outer: &Outer) {
    while let Ok(Some((kind, chunk))) = input.next().await {
        let done = match kind {
            FrameKind::Stdin => outer.type_in(&chunk).await,
            FrameKind::Resize => match frames::decode_json(&chunk) {
                Ok(size) => outer.resize(size),
                Err(_) => return,
            },
            // Nothing else is the caller's to send; what comes after it cannot be trusted.
            _ => return,
        };
        if done.is_err() {
            return;
        }
    }
}
