//! Exec sessions: processes that the agent keeps, whoever started them and whoever reads them.
//!
//! A session outlives the connection of the host; a restart of the agent ends it. [`run`] starts one and waits for its end, [`buffer`]
//! keeps what it printed, [`serve`] answers requests about it.
//!
//! No reader holds up the process, nor another reader: output goes into a buffer of [`SESSION_BYTES`], and of [`ALL_BYTES`] together.
//! What is too old for it is dropped, and a reader that comes late, or is too slow, is told how much that was. Only a reader that asks
//! to be waited for is, [`LOSSLESS_BYTES`] behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hearth_guest::exec_session::{SessionInfo, Until, tag_fault};
use hearth_guest::files::FaultCode;
use hearth_guest::{ExecEnd, FrameKind, TerminalSize};
use http::StatusCode;
use nix::sys::signal::{Signal, kill};
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cgroup::{Cgroup, Cgroups};
use super::process_tree::ProcessTree;
use super::terminal::Outer;
use crate::reply::Fault;

mod buffer;
mod run;
mod serve;

use buffer::{Buffer, Found};
pub(crate) use serve::answer;

/// Memory for the output of one session. A build prints less.
const SESSION_BYTES: usize = 4 * 1024 * 1024;
/// So far behind may a reader be that the process waits for. It is let on when the reader is half as far behind: to wake it for every
/// chunk would cost more than the chunk.
const LOSSLESS_BYTES: u64 = 512 * 1024;
/// Memory for the output of all of them. What has ended gives way first, then the largest.
const ALL_BYTES: usize = 32 * 1024 * 1024;
/// So many may run at once.
const MOST_RUNNING: usize = 256;
/// So many that have ended are kept; the one that ended first goes first.
const MOST_ENDED: usize = 64;
/// What a terminal takes for the end of its input at the beginning of a line.
const END_OF_INPUT: &[u8] = b"\x04";

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    inside: Mutex<Inside>,
    /// Memory for the output of all of them.
    kept: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inside {
    /// The oldest first.
    sessions: Vec<Arc<Session>>,
    /// Of those that are being started: their tags.
    starting: Vec<Option<String>>,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    id: String,
    tag: Option<String>,
    argv: Vec<String>,
    cwd: String,
    user: String,
    read_only: bool,
    started_unix_ms: i64,
    timeout_ms: Option<u64>,
    tree: ProcessTree,
    /// Of one in a terminal.
    outer: Option<Arc<Outer>>,
    stdin: tokio::sync::Mutex<Option<Stdin>>,
    /// Ends those that wait for it to take input.
    stdin_over: CancellationToken,
    inside: Mutex<Changing>,
    progress: watch::Sender<Progress>,
    /// A reader that is waited for has read, or gone.
    freed: watch::Sender<()>,
    readers: AtomicU32,
}

/// Where input goes.
#[derive(Debug)]
pub(super) enum Stdin {
    Pipe(ChildStdin),
    Terminal(Arc<Outer>),
}

#[derive(Debug)]
struct Changing {
    buffer: Buffer,
    size: Option<TerminalSize>,
    /// The first process is no more: its number may be somebody else's.
    gone: bool,
    end: Option<(ExecEnd, i64)>,
    /// When that was, by a clock that nobody sets.
    ended_at: Option<Instant>,
    /// It was removed: nothing can read it any more.
    removed: bool,
    /// Where the readers are that the process waits for, by their numbers.
    waited_for: BTreeMap<u64, u64>,
    /// When the process last waited for one.
    held_at: Option<Instant>,
}

impl Changing {
    /// Where the slowest reader is that the process waits for.
    fn slowest(&self) -> Option<u64> {
        self.waited_for.values().min().copied()
    }
}

/// What readers wait for.
#[derive(Debug, Clone, Copy)]
struct Progress {
    written: u64,
    /// Outputs that a process holds open.
    open: usize,
    ended: bool,
    /// It has ended, and what it printed until then was read.
    settled: bool,
}

impl Progress {
    fn is_over(self, until: Until) -> bool {
        match until {
            Until::Now => true,
            Until::Ended => self.settled,
            Until::Closed => self.settled && self.open == 0,
        }
    }
}

fn coded(status: StatusCode, code: FaultCode, message: impl Into<String>) -> Fault {
    Fault {
        code: Some(code),
        status,
        message: message.into(),
    }
}

fn conflict(message: impl Into<String>) -> Fault {
    coded(StatusCode::CONFLICT, FaultCode::Conflict, message)
}

fn invalid(message: impl Into<String>) -> Fault {
    coded(StatusCode::BAD_REQUEST, FaultCode::Invalid, message)
}

/// One that is being started. Its tag is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    sessions: &'a Sessions,
    tag: Option<String>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut inside = self.sessions.inside();
        if let Some(at) = inside.starting.iter().position(|tag| *tag == self.tag) {
            inside.starting.swap_remove(at);
        }
    }
}

impl Sessions {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, and the tag.
    fn reserve(&self, tag: Option<String>) -> Result<Reserved<'_>, Fault> {
        if let Some(fault) = tag.as_deref().and_then(tag_fault) {
            return Err(invalid(fault));
        }
        let mut inside = self.inside();
        let running = inside.sessions.iter().filter(|session| session.runs());
        if running.count() + inside.starting.len() >= MOST_RUNNING {
            return Err(conflict(format!(
                "{MOST_RUNNING} sessions run in this VM, and no more are allowed at once; end some of them first"
            )));
        }
        if let Some(tag) = &tag {
            let taken = inside
                .sessions
                .iter()
                .find(|session| session.tag.as_ref() == Some(tag) && session.runs());
            if let Some(taken) = taken {
                return Err(coded(
                    StatusCode::CONFLICT,
                    FaultCode::Exists,
                    format!(
                        "the session {} with the tag {tag:?} runs already; attach to it, end it, or use another tag",
                        taken.id
                    ),
                ));
            }
            if inside.starting.contains(&Some(tag.clone())) {
                return Err(coded(
                    StatusCode::CONFLICT,
                    FaultCode::Exists,
                    format!("another session with the tag {tag:?} is being started"),
                ));
            }
        }
        inside.starting.push(tag.clone());
        Ok(Reserved { sessions: self, tag })
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.inside().sessions.clone()
    }

    /// By id, process id or tag. Of several, one that runs comes first, and then the newest.
    fn find(&self, name: &str) -> Result<Arc<Session>, Fault> {
        let pid = name.parse::<i32>().ok();
        let inside = self.inside();
        let named = |session: &&Arc<Session>| {
            session.id == name
                || session.tag.as_deref() == Some(name)
                || pid.is_some_and(|pid| session.tree.leader.as_raw() == pid)
        };
        let found = inside.sessions.iter().filter(named);
        let found = found.max_by_key(|session| session.runs());
        found.cloned().ok_or_else(|| {
            coded(
                StatusCode::NOT_FOUND,
                FaultCode::NotFound,
                format!(
                    "there is no session {name:?} in this VM; when its agent is restarted, or the VM, sessions are gone"
                ),
            )
        })
    }

    /// The session that each of these cgroups, or else each of these first processes, is of.
    pub(super) fn owners(&self) -> Owners {
        let all = self.all();
        let of_group = |session: &Arc<Session>| {
            let group = session.tree.cgroup.as_ref().and_then(Cgroup::name_in_log)?;
            Some((group, session.id.clone()))
        };
        let running = all.iter().filter(|session| session.runs());
        Owners {
            groups: all.iter().filter_map(of_group).collect(),
            leaders: running
                .map(|session| (session.tree.leader.as_raw(), session.id.clone()))
                .collect(),
        }
    }

    /// Removes one that has ended. What processes that it left running print is read on, and lost.
    fn remove(&self, session: &Arc<Session>, cgroups: &Cgroups) -> Result<(), Fault> {
        if session.runs() {
            return Err(conflict(format!(
                "the session {} runs; end it first, with a signal",
                session.id
            )));
        }
        self.inside().sessions.retain(|other| !Arc::ptr_eq(other, session));
        {
            let mut inside = session.inside();
            inside.removed = true;
            self.shrink(&mut inside.buffer, 0);
        }
        cgroups.retire(session.tree.cgroup.clone());
        Ok(())
    }

    /// Those that have ended, in the order in which they did.
    fn ended(&self) -> Vec<Arc<Session>> {
        let mut ended: Vec<_> = self.all().into_iter().filter(|session| !session.runs()).collect();
        ended.sort_by_cached_key(|session| session.inside().ended_at);
        ended
    }

    /// Removes the oldest of those that have ended, where there are too many. One that can still print goes last.
    fn forget_old(&self, cgroups: &Cgroups) {
        let ended = self.ended();
        let surplus = ended.len().saturating_sub(MOST_ENDED);
        let (open, closed): (Vec<_>, Vec<_>) = ended
            .into_iter()
            .partition(|session| session.progress.borrow().open > 0 || session.readers.load(Ordering::Relaxed) > 0);
        for session in closed.iter().chain(&open).take(surplus) {
            // It runs no more: nothing can refuse that.
            drop(self.remove(session, cgroups));
        }
    }

    /// Keeps what a session has printed, and drops what there is no room for.
    fn keep(&self, session: &Session, kind: FrameKind, bytes: &[u8]) {
        let written = {
            let mut inside = session.inside();
            let before = inside.buffer.cost();
            inside.buffer.add(kind, bytes);
            self.kept.fetch_add(inside.buffer.cost() - before, Ordering::Relaxed);
            let most = if inside.removed { 0 } else { SESSION_BYTES };
            self.shrink(&mut inside.buffer, most);
            inside.buffer.written()
        };
        session.progress.send_modify(|progress| progress.written = written);
        while self.kept.load(Ordering::Relaxed) > ALL_BYTES && self.give_way() {}
    }

    fn shrink(&self, buffer: &mut Buffer, most: usize) {
        let before = buffer.cost();
        buffer.shrink(most);
        self.kept.fetch_sub(before - buffer.cost(), Ordering::Relaxed);
    }

    /// Drops output of the one that ended first, or of the largest. False when there is none that may go.
    fn give_way(&self) -> bool {
        let running = self.all().into_iter().filter(|session| session.runs());
        if self.ended().iter().any(|session| self.free(session, |_| 0)) {
            return true;
        }
        let mut largest: Vec<_> = running.collect();
        largest.sort_by_cached_key(|session| std::cmp::Reverse(session.inside().buffer.cost()));
        largest.iter().any(|session| self.free(session, |cost| cost / 2))
    }

    /// Drops output of one, but for what readers have not got that are waited for. Whether there was any.
    fn free(&self, session: &Session, most: fn(usize) -> usize) -> bool {
        let mut inside = session.inside();
        let before = inside.buffer.cost();
        match inside.slowest() {
            Some(position) => inside.buffer.drop_before(position),
            None => inside.buffer.shrink(most(before)),
        }
        let freed = before - inside.buffer.cost();
        self.kept.fetch_sub(freed, Ordering::Relaxed);
        freed > 0
    }

    /// Ends every process of every session: the agent itself is asked to end.
    pub(super) async fn end_all(&self) {
        let all = self.all();
        let running = all.iter().filter(|session| session.runs());
        futures::future::join_all(running.map(|session| session.tree.end())).await;
    }
}

/// Which session a process is of.
#[derive(Debug)]
pub(super) struct Owners {
    groups: std::collections::HashMap<String, String>,
    leaders: std::collections::HashMap<i32, String>,
}

impl Owners {
    /// By its cgroup, or its session in the kernel's sense.
    pub(super) fn of(&self, group: &str, kernel_session: i32) -> Option<String> {
        let by_group = self.groups.get(group);
        by_group.or_else(|| self.leaders.get(&kernel_session)).cloned()
    }
}

impl Session {
    fn inside(&self) -> MutexGuard<'_, Changing> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runs(&self) -> bool {
        self.inside().end.is_none()
    }

    fn info(&self) -> SessionInfo {
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
    fn is_behind(&self, bytes: u64) -> bool {
        let inside = self.inside();
        let behind = |position: u64| inside.buffer.written().saturating_sub(position);
        inside.slowest().is_some_and(|position| behind(position) >= bytes)
    }

    fn is_held(&self) -> bool {
        self.is_behind(LOSSLESS_BYTES)
    }

    /// Waits while one is too far behind.
    async fn room(&self) {
        if !self.is_held() {
            return;
        }
        let mut freed = self.freed.subscribe();
        while self.is_behind(LOSSLESS_BYTES / 2) && freed.changed().await.is_ok() {}
        self.inside().held_at = Some(Instant::now());
    }

    fn found_at(&self, position: u64) -> Found {
        self.inside().buffer.at(position)
    }

    fn no_input(&self) -> Fault {
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
    async fn write(&self, bytes: &[u8]) -> Result<(), Fault> {
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
    async fn close_stdin(&self) -> Result<(), Fault> {
        if self.outer.is_some() {
            return self.write(END_OF_INPUT).await;
        }
        if self.read_only || self.stdin_over.is_cancelled() {
            return Err(self.no_input());
        }
        self.drop_stdin().await;
        Ok(())
    }

    async fn drop_stdin(&self) {
        self.stdin_over.cancel();
        drop(self.stdin.lock().await.take());
    }

    fn resize(&self, size: TerminalSize) -> Result<(), Fault> {
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
    async fn signal(&self, signal: Signal, tree: bool) -> Result<u32, Fault> {
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
