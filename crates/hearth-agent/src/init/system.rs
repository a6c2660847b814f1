//! Process 1 in a root without an init, of a VM or of a container: mounts what every program expects, keeps the agent's server running, reaps
//! orphans, and shuts the machine down when it is asked to.
//!
//! The server is a process of its own, so that reaping any child here never takes one away from it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Mount, mount_all, power_off, say};
use crate::container;

/// QEMU's user-mode network answers names here.
const NAME_SERVER: &str = "10.0.2.3";

const HOST_NAME: &str = "hearth";

/// Before a server that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// How long processes may take to end before they are killed and the machine goes down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Linux: the power is failing, or the host asks for an end. Tokio only knows the number.
const SIGPWR: i32 = Signal::SIGPWR as i32;

const NOTHING: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// In this order: some lie inside of others.
const MOUNTS: [Mount; 8] = [
    Mount {
        kind: "proc",
        target: "/proc",
        flags: NOTHING,
        data: None,
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        flags: NOTHING,
        data: None,
    },
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        flags: MsFlags::MS_NOSUID,
        data: Some("mode=755"),
    },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID,
        data: Some("gid=5,mode=620,ptmxmode=666"),
    },
    Mount {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: Some("mode=1777"),
    },
    Mount {
        kind: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: Some("mode=755"),
    },
    Mount {
        kind: "tmpfs",
        target: "/tmp",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: Some("mode=1777"),
    },
    Mount {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: NOTHING,
        data: None,
    },
];

/// Links that programs expect in `/dev`, and what they point to.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Runs until the machine ends.
pub(crate) fn run() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("hearth-agent: init is for process 1");
        return ExitCode::FAILURE;
    }
    say(format_args!(
        "version {} is the first process",
        env!("CARGO_PKG_VERSION")
    ));
    set_up();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.and_then(|runtime| runtime.block_on(supervise()));
    if let Err(error) = result {
        say(format_args!("the first process failed: {error}"));
    }
    power_off()
}

fn set_up() {
    // What stage one has mounted already stays; mounting it twice would hide what lies there.
    let mounted = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_there = |target: &str| mounted.lines().any(|line| line.split(' ').nth(1) == Some(target));
    let (_, missing): (Vec<_>, Vec<_>) = MOUNTS.into_iter().partition(|mount| is_there(mount.target));
    mount_all(&missing);
    // The root may come up read-only.
    let _ = mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_NOATIME,
        None::<&str>,
    );
    for (link, target) in LINKS {
        // There already, most of the time.
        drop(symlink(target, link));
    }
    if let Err(error) = write_missing() {
        say(format_args!("the name server could not be set: {error}"));
    }
    let name = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = if name.trim().is_empty() { HOST_NAME } else { name.trim() };
    let _ = nix::unistd::sethostname(name);
}

fn write_missing() -> io::Result<()> {
    let path = Path::new("/etc/resolv.conf");
    let text = fs::read_to_string(path).unwrap_or_default();
    if text.lines().any(|line| line.trim_start().starts_with("nameserver")) {
        return Ok(());
    }
    fs::create_dir_all("/etc")?;
    // A link into a folder that no service of this root fills.
    if path.is_symlink() && !path.exists() {
        fs::remove_file(path)?;
    }
    fs::write(path, format!("nameserver {NAME_SERVER}\n"))
}

async fn supervise() -> io::Result<()> {
    let mut child = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut power = signal(SignalKind::from_raw(SIGPWR))?;
    let mut server = None;
    let mut start_at = Instant::now();
    loop {
        if server.is_none() && Instant::now() >= start_at {
            server = start_server();
            start_at = Instant::now() + RESTART_PAUSE;
        }
        tokio::select! {
            _ = child.recv() => {
                for pid in reap() {
                    if server == Some(pid) {
                        say("the server ended, starting it again");
                        server = None;
                        start_at = Instant::now() + RESTART_PAUSE;
                    }
                }
            }
            () = sleep_until(start_at), if server.is_none() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = power.recv() => break,
        }
    }
    end_everything(&mut child).await;
    Ok(())
}

fn start_server() -> Option<Pid> {
    // By its name where there is one: it is what lists of processes show.
    let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    // A container's network is its engine's affair.
    let how = if container::shares_kernel() {
        "--container"
    } else {
        "--setup-network"
    };
    let spawned = Command::new(program).args(["serve", how]).spawn();
    match spawned {
        // Not waited for through the handle: `reap` takes every child.
        Ok(child) => i32::try_from(child.id()).ok().map(Pid::from_raw),
        Err(error) => {
            say(format_args!("the server could not be started: {error}"));
            None
        }
    }
}

/// Takes every child that has ended, orphans of others included.
fn reap() -> Vec<Pid> {
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => ended.push(pid),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                say(format_args!("children could not be waited for: {}", error.desc()));
                return ended;
            }
        }
    }
}

/// Asks all processes to end, waits, and kills the rest.
async fn end_everything(child: &mut tokio::signal::unix::Signal) {
    let everyone = Pid::from_raw(-1);
    // Fails only when there is no process.
    let _ = kill(everyone, Signal::SIGTERM);
    let deadline = Instant::now() + SHUTDOWN_GRACE;
    while !nobody_left() && Instant::now() < deadline {
        tokio::select! {
            _ = child.recv() => {}
            () = sleep(RESTART_PAUSE) => {}
        }
    }
    let _ = kill(everyone, Signal::SIGKILL);
    reap();
    nix::unistd::sync();
    // So that the next mount finds a clean file system; a busy one stays as it is.
    let _ = mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        None::<&str>,
    );
}

fn nobody_left() -> bool {
    reap();
    matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD))
}
