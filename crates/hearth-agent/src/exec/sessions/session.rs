//! One session: its process, what it has printed, its input, and its readers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hearth_guest::exec_session::{SessionInfo, Until};
use hearth_guest::{ExecEnd, TerminalSize};
use nix::sys::signal::{Signal, kill};
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::process_tree::ProcessTree;
use super::super::terminal::Outer;
use super::buffer::{Buffer, Found};
use super::conflict;
use crate::reply::Fault;

/// So far behind may a reader be that the process waits for. It is let on when the reader is half as far behind: to wake it for every
/// chunk would cost more than the chunk.
const LOSSLESS_BYTES: u64 = 512 * 1024;
/// What a terminal takes for the end of its input at the beginning of a line.
const END_OF_INPUT: &[u8] = b"\x04";

#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: String,
    pub(super) tag: Option<String>,
    pub(super) argv: Vec<String>,
    pub(super) cwd: String,
    pub(super) user: String,
    pub(super) read_only: bool,
    pub(super) started_unix_ms: i64,
    pub(super) timeout_ms: Option<u64>,
    pub(super) tree: ProcessTree,
    /// Of one in a terminal.
    pub(super) outer: Option<Arc<Outer>>,
    pub(super) stdin: tokio::sync::Mutex<Option<Stdin>>,
    /// Ends those that wait for it to take input.
    pub(super) stdin_over: CancellationToken,
    pub(super) inside: Mutex<Changing>,
    pub(super) progress: watch::Sender<Progress>,
    /// A reader that is waited for has read, or gone.
    pub(super) freed: watch::Sender<()>,
    pub(super) readers: AtomicU32,
}

/// Where input goes.
#[derive(Debug)]
pub(super) enum Stdin {
    Pipe(ChildStdin),
    Terminal(Arc<Outer>),
}

#[derive(Debug)]
pub(super) struct Changing {
    pub(super) buffer: Buffer,
    pub(super) size: Option<TerminalSize>,
    /// The first process is no more: its number may be somebody else's.
    pub(super) gone: bool,
    pub(super) end: Option<(ExecEnd, i64)>,
    /// When that was, by a clock that nobody sets.
    pub(super) ended_at: Option<Instant>,
    /// It was removed: nothing can read it any more.
    pub(super) removed: bool,
    /// Where the readers are that the process waits for, by their numbers.
    pub(super) waited_for: BTreeMap<u64, u64>,
    /// When the process last waited for one.
    pub(super) held_at: Option<Instant>,
}

impl Changing {
    /// Where the slowest reader is that the process waits for.
    pub(super) fn slowest(&self) -> Option<u64> {
        self.waited_for.values().min().copied()
    }
}

/// What readers wait for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) written: u64,
    /// Outputs that a process holds open.
    pub(super) open: usize,
    pub(super) ended: bool,
    /// It has ended, and what it printed until then was read.
    pub(super) started: bool,
}

impl Progress {
    pub(super) fn is_over(self, until: Until) -> bool {
        match until {
            Until::Now => true,
            Until::Ended => self.started,
            Until::Closed => self.started && self.open == 0,
        }
    }
}

impl Session {
    pub(super) fn inside(&self) -> MutexGuard<'_, Changing> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn runs(&self) -> bool {
        self.inside().end.is_none()
    }

    pub(super) fn info(&self) -> SessionInfo {
        let progress = *self.progress.borrow();
        let inside = self.inside();
        let takes_input = !self.read_only && !self.stdin_over.is_cancelled() && inside.end.is_none();
        SessionInfo {
            id: self.id.clone(),
            tag: self.tag.clone(),
            pid: self.tree.leader.as_raw().unsigned_abs(),
            argv: self.argv.clone(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            terminal: inside.size,
            stdin_open: takes_input,
            started_unix_ms: self.started_unix_ms,
            timeout_ms: self.timeout_ms,
            end: inside.end.as_ref().map(|(end, _)| end.clone()),
            ended_unix_ms: inside.end.as_ref().map(|(_, at)| *at),
            output_bytes: inside.buffer.written(),
            dropped_bytes: inside.buffer.dropped(),
            output_open: progress.open > 0,
            readers: self.readers.load(Ordering::Relaxed),
        }
    }

    /// Whether a reader that is waited for is so many bytes behind.
    pub(super) fn is_behind(&self, bytes: u64) -> bool {
        let inside = self.inside();
        let behind = |position: u64| inside.buffer.written().saturating_sub(position);
        inside.slowest().is_some_and(|position| behind(position) >= bytes)
    }

    pub(super) fn is_held(&self) -> bool {
        self.is_behind(LOSSLESS_BYTES)
    }

    /// Waits while one is too far behind.
    pub(super) async fn room(&self) {
        if !self.is_held() {
            return;
        }
        let mut freed = self.freed.subscribe();
        while self.is_behind(LOSSLESS_BYTES / 2) && freed.changed().await.is_ok() {}
        self.inside().held_at = Some(Instant::now());
    }

    pub(super) fn found_at(&self, position: u64) -> Found {
        self.inside().buffer.at(position)
    }

    pub(super) fn no_input(&self) -> Fault {
        let why = if self.read_only {
            "takes no input: it was started read-only"
        } else if !self.runs() {
            "has ended and takes no input"
        } else {
            "takes no input: it was started without, or its input is closed"
        };
        conflict(format!("the session {} {why}", self.id))
    }

    /// Writes input. Waits for as long as the process does not read it, it has not ended and its input is not closed.
    pub(super) async fn write(&self, bytes: &[u8]) -> Result<(), Fault> {
        if self.read_only {
            return Err(self.no_input());
        }
        let writing = async {
            match &mut *self.stdin.lock().await {
                None => false,
                Some(Stdin::Pipe(pipe)) => pipe.write_all(bytes).await.is_ok(),
                Some(Stdin::Terminal(outer)) => outer.type_in(bytes).await.is_ok(),
            }
        };
        let written = tokio::select! {
            biased;
            () = self.stdin_over.cancelled() => false,
            written = writing => written,
        };
        if written { Ok(()) } else { Err(self.no_input()) }
    }

    /// Ends the input. A terminal gets what is typed for that, and takes input afterwards.
    pub(super) async fn close_stdin(&self) -> Result<(), Fault> {
        if self.outer.is_some() {
            return self.write(END_OF_INPUT).await;
        }
        if self.read_only || self.stdin_over.is_cancelled() {
            return Err(self.no_input());
        }
        self.drop_stdin().await;
        Ok(())
    }

    pub(super) async fn drop_stdin(&self) {
        self.stdin_over.cancel();
        drop(self.stdin.lock().await.take());
    }

    pub(super) fn resize(&self, size: TerminalSize) -> Result<(), Fault> {
        let Some(outer) = &self.outer else {
            return Err(conflict(format!("the session {} has no terminal", self.id)));
        };
        outer
            .resize(size)
            .map_err(|error| conflict(format!("the terminal cannot have this size: {error}")))?;
        self.inside().size = Some(size);
        Ok(())
    }

    /// Says how many processes got it.
    pub(super) async fn signal(&self, signal: Signal, tree: bool) -> Result<u32, Fault> {
        let gone = self.inside().gone;
        let sent = match (tree, gone) {
            (true, false) => self.tree.signal_each(signal).await,
            // Its number may be another's by now: only those count that the cgroup names.
            (true, true) => match &self.tree.cgroup {
                Some(cgroup) => cgroup.signal_each(signal).await,
                None => 0,
            },
            (false, false) => usize::from(kill(self.tree.leader, signal).is_ok()),
            (false, true) => 0,
        };
        match u32::try_from(sent) {
            Ok(0) => Err(conflict(format!(
                "the session {} has ended, so the signal went to no process",
                self.id
            ))),
            sent => Ok(sent.unwrap_or(u32::MAX)),
        }
    }
}
