//! Processes that outlive us: who they are (a pid alone is no identity), whether they live, how they are found and ended.
//! Knows nothing of VMs.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// One process. Its start time distinguishes it from a later one with the same number, the boot id from one of an earlier boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks since the host booted.
    started: u64,
    boot: String,
}

/// The fields of `/proc/PID/stat` that matter here.
struct Stat {
    state: u8,
    started: u64,
    /// Processor time used, clock ticks.
    used: u64,
}

/// A file of one process; `None` when the process is gone. Any other failure (no file handles left, say) must not be taken
/// for a process that is gone: VMs would be given up that live.
fn read(pid: i32, file: &str) -> io::Result<Option<Vec<u8>>> {
    let no_such_process = Some(Errno::SRCH.raw_os_error());
    match fs::read(format!("/proc/{pid}/{file}")) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == no_such_process => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // proc(5) counts from 1 and `rest` begins with field 3 (state); the start time is field 22, time in user mode and in the
    // kernel are 14 and 15.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        started: number(22)?,
        used: number(14)? + number(15)?,
    })
}

fn boot_id() -> io::Result<String> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(known.clone());
    }
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT_ID.get_or_init(|| text.trim().to_owned()).clone())
}

impl ProcessId {
    /// The process that has this number now; `None` when there is none or only its remains (a zombie).
    pub(crate) fn of(pid: i32) -> io::Result<Option<Self>> {
        let Some(bytes) = read(pid, "stat")? else {
            return Ok(None);
        };
        let stat = parse_stat(&String::from_utf8_lossy(&bytes)).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat cannot be understood"),
            )
        })?;
        if matches!(stat.state, b'Z' | b'X') {
            return Ok(None);
        }
        Ok(Some(Self {
            pid,
            started: stat.started,
            boot: boot_id()?,
        }))
    }

    /// The process of a child that was just started; an error when it has ended already.
    pub(crate) fn of_child(child: &tokio::process::Child) -> io::Result<Self> {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let process = pid.map(Self::of).transpose()?.flatten();
        process.ok_or_else(|| io::Error::other("the process ended at once"))
    }

    /// Whether exactly this process still lives.
    pub(crate) fn is_alive(&self) -> io::Result<bool> {
        Ok(Self::of(self.pid)?.as_ref() == Some(self))
    }

    /// Whether it lives and a signal has stopped it (`kill -STOP`). One that a debugger holds for a moment does not count.
    pub(crate) fn is_halted(&self) -> io::Result<bool> {
        let stat = read(self.pid, "stat")?.and_then(|bytes| parse_stat(&String::from_utf8_lossy(&bytes)));
        Ok(stat.is_some_and(|stat| stat.started == self.started && stat.state == b'T'))
    }

    /// The processor time it has used so far, in clock ticks of 10 ms; `None` when it is gone.
    pub(crate) fn ticks_used(&self) -> io::Result<Option<u64>> {
        let stat = read(self.pid, "stat")?.and_then(|bytes| parse_stat(&String::from_utf8_lossy(&bytes)));
        Ok(stat.filter(|stat| stat.started == self.started).map(|stat| stat.used))
    }

    /// A handle that keeps meaning this process even when its number is given to another one. `None` when it is gone.
    fn handle(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let handle = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(handle) => handle,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Asked after opening: from here on the handle cannot come to mean another process.
        Ok(self.is_alive()?.then_some(handle))
    }

    /// Kills it and waits until it is gone, at most for a deadline of whole seconds. `Ok` when it is (or was already) gone.
    pub(crate) async fn kill(&self, deadline: Duration) -> io::Result<()> {
        let Some(handle) = self.handle()? else { return Ok(()) };
        if let Err(error) = pidfd_send_signal(&handle, Signal::KILL)
            && error != Errno::SRCH
        {
            return Err(error.into());
        }
        let waited = tokio::task::spawn_blocking(move || {
            let time = Timespec {
                tv_sec: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: 0,
            };
            rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&time)))
        });
        match waited.await.map_err(io::Error::other)?? {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "process {} did not end within {} s of SIGKILL",
                    self.pid,
                    deadline.as_secs()
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// Every process on the host that this user may look at, with what `look` makes of it.
fn scan<T>(mut look: impl FnMut(i32) -> io::Result<Option<T>>) -> io::Result<Vec<(ProcessId, T)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let what = match look(pid) {
            // Another user's, so not ours.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            what => what?,
        };
        if let Some(what) = what
            && let Some(process) = ProcessId::of(pid)?
        {
            found.push((process, what));
        }
    }
    Ok(found)
}

/// The processes whose arguments hold `flag` directly followed by a value that `accept` turns into something.
pub(crate) fn find_by_argument<T>(
    flag: &str,
    mut accept: impl FnMut(&str) -> Option<T>,
) -> io::Result<Vec<(ProcessId, T)>> {
    scan(|pid| {
        let line = read(pid, "cmdline")?.unwrap_or_default();
        let mut arguments = line
            .split(|byte| *byte == 0)
            .skip_while(|argument| *argument != flag.as_bytes());
        let value = arguments.nth(1).and_then(|value| std::str::from_utf8(value).ok());
        Ok(value.and_then(&mut accept))
    })
}

/// The processes that were started with exactly this `NAME=value` in their environment.
pub(crate) fn find_by_environment(variable: &str) -> io::Result<Vec<ProcessId>> {
    let found = scan(|pid| {
        let environment = read(pid, "environ")?.unwrap_or_default();
        let marked = environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == variable.as_bytes());
        Ok(marked.then_some(()))
    })?;
    Ok(found.into_iter().map(|(process, ())| process).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_killed_process_is_gone_and_its_number_means_nothing() {
        let mut child = tokio::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = ProcessId::of_child(&child).unwrap();
        assert!(process.is_alive().unwrap());
        let impostor = ProcessId {
            started: process.started + 1,
            ..process.clone()
        };
        assert!(!impostor.is_alive().unwrap());
        impostor.kill(Duration::from_secs(5)).await.unwrap();
        assert!(
            process.is_alive().unwrap(),
            "another start time is another process and must not be killed"
        );
        process.kill(Duration::from_secs(5)).await.unwrap();
        assert!(!process.is_alive().unwrap());
        child.wait().await.unwrap();
    }
}
