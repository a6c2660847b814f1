//! Exec sessions: processes that the agent keeps, independent of the client that started them and of those that read them.
//!
//! A session outlives the connection of the host; a restart of the agent ends it. [`session`] is one of them, [`run`] starts it and waits
//! for its end, [`buffer`] keeps what it printed, [`serve`] answers requests about it.
//!
//! No reader holds up the process, nor another reader: output goes into a buffer of [`SESSION_BYTES`], and of [`ALL_BYTES`] together.
//! What is too old for it is dropped, and a reader that comes late, or is too slow, is told how much that was. Only a reader that asks
//! to be waited for is: see [`session`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_guest::FrameKind;
use hearth_guest::exec_session::tag_fault;
use hearth_guest::files::FaultCode;
use http::StatusCode;

use super::cgroup::{Cgroup, Cgroups};
use crate::reply::Fault;

mod buffer;
mod run;
mod serve;
mod session;

use buffer::Buffer;
pub(crate) use serve::answer;
use session::Session;

/// Memory for the output of one session. A build prints less.
const SESSION_BYTES: usize = 4 * 1024 * 1024;
/// Memory for the output of all of them. What has ended gives way first, then the largest.
const ALL_BYTES: usize = 32 * 1024 * 1024;
/// So many may run at once.
const MOST_RUNNING: usize = 256;
/// So many that have ended are kept; the one that ended first goes first.
const MOST_ENDED: usize = 64;
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
