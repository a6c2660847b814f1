//! Everything a command started, and how it is ended: asked first, then killed.
//!
//! The processes are frozen while they are listed, so that a fork bomb cannot make new ones faster than they are counted.
//!
//! Known by its cgroup, in union with its session and process group. Without cgroups, a mark in the environment stands in:
//! children inherit it, also those that left the session; a process that clears its environment as well escapes.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::cgroup::Cgroup;

/// Name of the variable that marks a command's processes where there are no cgroups.
pub(super) const MARK: &str = "HEARTH_COMMAND";

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// The same for one of more than [`MANY`]: a fork bomb has nothing to bring in order, and takes the processor from everything else.
const GRACE_OF_MANY: Duration = Duration::from_millis(300);
const MANY: usize = 200;

/// How long the kernel may take to end processes after SIGKILL (one may be stuck in the disk).
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Between two looks at whether they have ended.
const FIRST_CHECK: Duration = Duration::from_millis(2);
const LONGEST_CHECK: Duration = Duration::from_millis(50);

/// A command's processes.
#[derive(Debug)]
pub(super) struct ProcessTree {
    /// The first one, leader of a session and a process group.
    pub(super) leader: Pid,
    pub(super) cgroup: Option<Cgroup>,
    /// The value of [`MARK`], where there is no cgroup.
    pub(super) mark: Option<String>,
}

impl ProcessTree {
    /// Ends all of it. The leader must be waited for by someone else meanwhile.
    pub(super) async fn end(&self) {
        let grace = {
            let _frozen = match &self.cgroup {
                Some(cgroup) => cgroup.freeze().await,
                None => None,
            };
            let many = self.signal(Signal::SIGTERM) > MANY;
            // A stopped process does not see SIGTERM before it continues.
            self.signal(Signal::SIGCONT);
            if many { GRACE_OF_MANY } else { GRACE }
        };
        if !self.ended_within(grace, false).await {
            self.ended_within(LAST_WAIT, true).await;
        }
    }

    /// Sends a signal to each of its processes, once, while none can make another one. How many got it. Not after the leader was
    /// waited for: its number may be somebody else's then.
    pub(super) async fn signal_each(&self, signal: Signal) -> usize {
        let _frozen = match &self.cgroup {
            Some(cgroup) => cgroup.freeze().await,
            None => None,
        };
        send_to(&self.members(), signal)
    }

    /// How many processes it went to.
    fn signal(&self, signal: Signal) -> usize {
        // That something is gone already is the aim.
        let _ = killpg(self.leader, signal);
        let members = self.members();
        for pid in &members {
            let _ = kill(*pid, signal);
        }
        members.len()
    }

    /// Looks until nothing is left; with `kills`, what there is is killed before each look.
    async fn ended_within(&self, time: Duration, kills: bool) -> bool {
        let deadline = Instant::now() + time;
        let mut pause = FIRST_CHECK;
        // The kernel has been told to kill the whole cgroup: to tell each of thousands again would only keep it from doing so.
        let mut all_told = false;
        loop {
            if kills && !(all_told && self.is_in_cgroup()) {
                all_told = self.cgroup.as_ref().is_some_and(Cgroup::kill);
                if !all_told || !self.is_in_cgroup() {
                    self.signal(Signal::SIGKILL);
                }
            }
            if !self.is_alive() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_CHECK);
        }
    }

    /// Whether any has not ended. Most often its cgroup knows, and not all processes of the VM need to be looked at.
    fn is_alive(&self) -> bool {
        self.is_in_cgroup() || !self.members().is_empty()
    }

    fn is_in_cgroup(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|cgroup| !cgroup.members().is_empty())
    }

    /// All processes of it that have not ended.
    fn members(&self) -> Vec<Pid> {
        let mut found = match &self.cgroup {
            Some(cgroup) => cgroup.members(),
            None => Vec::new(),
        };
        // The leader may not have entered its cgroup yet, and an old session may have been joined from elsewhere.
        let group_alive = !matches!(killpg(self.leader, None), Err(Errno::ESRCH));
        if self.cgroup.is_none() || group_alive {
            let mut known: HashSet<Pid> = found.iter().copied().collect();
            for pid in marked_or_in_session(self.leader, self.mark.as_deref()) {
                if known.insert(pid) {
                    found.push(pid);
                }
            }
        }
        found
    }
}

/// How many got it.
pub(super) fn send_to(processes: &[Pid], signal: Signal) -> usize {
    processes.iter().filter(|pid| kill(**pid, signal).is_ok()).count()
}

/// Goes through all processes; only done when something is to be ended.
fn marked_or_in_session(leader: Pid, mark: Option<&str>) -> Vec<Pid> {
    let wanted = mark.map(|mark| format!("{MARK}={mark}"));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some(Stat { zombie, group, session }) = parse_stat(&stat) else {
            continue;
        };
        if zombie {
            continue;
        }
        let ours = pid == leader.as_raw() || group == leader.as_raw() || session == leader.as_raw();
        let is_marked = || {
            let Some(wanted) = &wanted else { return false };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == wanted.as_bytes())
        };
        if ours || is_marked() {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

struct Stat {
    zombie: bool,
    group: i32,
    session: i32,
}

/// `/proc/PID/stat`: the name in parentheses may itself hold anything, so everything counts from its end.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    Some(Stat {
        zombie: matches!(state, "Z" | "X"),
        group,
        session,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_name_does_not_confuse_the_fields() {
        let stat = parse_stat("42 (a) Z 1 (b) S 7 41 40 0 -1").unwrap();
        assert_eq!((stat.zombie, stat.group, stat.session), (false, 41, 40));
        assert!(parse_stat("42 (x) Z 1 2 3").unwrap().zombie);
    }
}
