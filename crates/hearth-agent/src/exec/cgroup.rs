//! One cgroup (version 2) for each command: the only thing that still knows a process which left its session and lost
//! its parent, and which of them the kernel killed for memory. No limits are set.
//!
//! They lie side by side in a tree of our own at the top of the hierarchy, not below the agent's service: a background
//! process must not count as the service's when the agent is restarted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::process_tree::send_to;

const TREE: &str = "hearth";

/// So many of commands that have ended are removed at once, however busy the agent is.
const MANY: usize = 64;

/// How long a cgroup may take to freeze. A process that is deep in the kernel may take longer, and is handled unfrozen.
const LONGEST_FREEZE: Duration = Duration::from_millis(500);
const FREEZE_CHECK: Duration = Duration::from_millis(2);

/// Where the commands' cgroups are; without a place, processes are found by other signs.
#[derive(Debug)]
pub(super) struct Cgroups {
    root: Option<PathBuf>,
    /// Of commands that have ended; some of them left processes behind.
    retired: Mutex<Vec<PathBuf>>,
}

impl Cgroups {
    /// Makes the tree, or goes without.
    pub(super) fn find() -> Self {
        let root = mount_point()
            .map(|mount| mount.join(TREE))
            .filter(|root| is_usable(root));
        if let Some(root) = &root {
            sweep_old(root);
            count_memory(root);
        } else {
            eprintln!("hearth-agent: no cgroup v2 to write to; processes are tracked by session and environment only");
        }
        Self {
            root,
            retired: Mutex::default(),
        }
    }

    pub(super) fn none() -> Self {
        Self {
            root: None,
            retired: Mutex::default(),
        }
    }

    /// A new cgroup; `None` when there can be none.
    pub(super) fn create(&self) -> Option<Cgroup> {
        let path = self
            .root
            .as_ref()?
            .join(format!("{}-{}", std::process::id(), Uuid::new_v4().simple()));
        fs::create_dir(&path).ok()?;
        Some(Cgroup { path })
    }

    /// A command's cgroup is not needed any more. It is removed by [`Cgroups::sweep`], because that takes time.
    pub(super) fn retire(&self, cgroup: Option<Cgroup>) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.extend(cgroup.map(|cgroup| cgroup.path));
        if retired.len() > MANY {
            remove(&mut retired);
        }
    }

    /// Removes those of them that no process is left in. True when none remains.
    pub(super) fn sweep(&self) -> bool {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        remove(&mut retired);
        retired.is_empty()
    }
}

fn remove(retired: &mut Vec<PathBuf>) {
    retired.retain(|path| fs::remove_dir(path).is_err_and(|error| error.kind() != io::ErrorKind::NotFound));
}

/// One command's cgroup.
#[derive(Debug, Clone)]
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Everything alive in it and below.
    pub(super) fn members(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        collect_members(&self.path, &mut found);
        found
    }

    /// Sends a signal to each of its processes. How many got it.
    pub(super) async fn signal_each(&self, signal: Signal) -> usize {
        let _frozen = self.freeze().await;
        send_to(&self.members(), signal)
    }

    /// How many of its processes the kernel has killed for memory; `None` where it does not count that by cgroup.
    pub(super) fn killed_for_memory(&self) -> Option<u64> {
        killed_in(&fs::read_to_string(self.path.join("memory.events")).ok()?)
    }

    /// Its name in the kernel's log.
    pub(super) fn name_in_log(&self) -> Option<String> {
        Some(format!("/{TREE}/{}", self.path.file_name()?.to_str()?))
    }

    /// Nothing in it and below runs on while this lives: no new process comes between a look at its members and what is done to
    /// them. Waits until that is so, or for a moment at most; `None` when this kernel (before 5.2) cannot.
    pub(super) async fn freeze(&self) -> Option<Frozen<'_>> {
        fs::write(self.path.join("cgroup.freeze"), "1").ok()?;
        let frozen = Frozen(self);
        let deadline = Instant::now() + LONGEST_FREEZE;
        while Instant::now() < deadline && !self.is_frozen() {
            sleep(FREEZE_CHECK).await;
        }
        Some(frozen)
    }

    fn is_frozen(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "frozen 1"))
    }

    /// Kills everything in it and below at once, forks in flight included. False when this kernel (before 5.14) cannot.
    pub(super) fn kill(&self) -> bool {
        fs::write(self.path.join("cgroup.kill"), "1").is_ok()
    }
}

/// A frozen cgroup. It is thawed when this is dropped.
#[derive(Debug)]
pub(super) struct Frozen<'a>(&'a Cgroup);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // One that cannot be thawed is killed later, which needs no thaw.
        drop(fs::write(self.0.path.join("cgroup.freeze"), "0"));
    }
}

/// Lets the kernel say of each command's cgroup whose memory was short. Where it cannot, its log is all there is.
fn count_memory(root: &Path) {
    drop(fs::write(root.join("cgroup.subtree_control"), "+memory"));
}

/// The count `oom_kill` of a file `memory.events`.
fn killed_in(events: &str) -> Option<u64> {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    count.trim().parse().ok()
}

/// Removes what earlier agents have left, unless there are processes in it. Each name begins with its agent's process id.
fn sweep_old(root: &Path) {
    let ours = std::process::id().to_string();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((agent, _)) = name.to_str().and_then(|name| name.split_once('-')) else {
            continue;
        };
        if agent == ours || !Path::new("/proc").join(agent).exists() {
            drop(fs::remove_dir(entry.path()));
        }
    }
}

fn collect_members(path: &Path, found: &mut Vec<Pid>) {
    if let Ok(text) = fs::read_to_string(path.join("cgroup.procs")) {
        // 0 stands for a process of another pid namespace; signalling it would hit ourselves.
        found.extend(
            text.lines()
                .filter_map(|line| line.parse().ok())
                .filter(|pid| *pid > 0)
                .map(Pid::from_raw),
        );
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_members(&entry.path(), found);
        }
    }
}

/// The first cgroup v2 file system that is mounted.
fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// True when commands can have cgroups below `root`: it can be made, and a process could be moved there.
fn is_usable(root: &Path) -> bool {
    let made = fs::create_dir(root);
    made.is_ok_and(|()| true)
        || (root.join("cgroup.procs").exists() && nix::unistd::access(root, nix::unistd::AccessFlags::W_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_by_cgroup_how_many_it_killed() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(killed_in(events), Some(2));
        assert_eq!(killed_in("low 0\n"), None);
    }
}
