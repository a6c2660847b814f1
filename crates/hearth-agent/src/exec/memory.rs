//! Whether the kernel killed a process of a command because the VM had no memory left. Where it counts memory by cgroup, the
//! command's own says so, and the kernel's log only who it was: of several commands at once each learns of its own processes alone.
//! Elsewhere the log is all there is, read after a command has failed and something was ever killed for this.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use nix::libc::O_NONBLOCK;
use nix::time::{ClockId, clock_gettime};

/// The kernel's log; each read gives one record.
const KERNEL_LOG: &str = "/dev/kmsg";
/// Longer than any record.
const RECORD_BYTES: usize = 8192;
/// The kernel's log has a clock of its own, which differs from the usual one by less than this.
const CLOCKS_DIFFER: Duration = Duration::from_millis(500);
/// The cgroup that all commands' cgroups are below.
const OF_COMMANDS: &str = "/hearth";

/// The time by which the kernel's log counts.
pub(super) fn now() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok().map(Duration::from)
}

/// What is known of a command whose processes may have been killed.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) began: Option<Duration>,
    /// How many of its processes its cgroup says were killed; `None` where that is not counted.
    pub(super) killed: Option<u64>,
    /// Its cgroup, as the log calls it.
    pub(super) group: Option<String>,
}

/// Which process was killed, as a message for people; `None` when none was. Blocks for a moment.
pub(super) fn killed_of(suspect: &Suspect) -> Option<String> {
    match suspect.killed {
        Some(0) => None,
        Some(count) => {
            let named = suspect.group.as_deref().and_then(|group| in_log(suspect.began, group));
            let unnamed = || match count {
                1 => "one of its processes".to_owned(),
                many => format!("{many} of its processes"),
            };
            Some(named.unwrap_or_else(unnamed))
        }
        None => in_log(suspect.began, OF_COMMANDS),
    }
}

/// The last one that the log tells of since then, of this cgroup or below it.
fn in_log(began: Option<Duration>, group: &str) -> Option<String> {
    let start = began?.saturating_sub(CLOCKS_DIFFER);
    let counters = fs::read_to_string("/proc/vmstat").ok()?;
    if !counters
        .lines()
        .any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
    {
        return None;
    }
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(KERNEL_LOG)
        .ok()?;
    let mut buffer = vec![0; RECORD_BYTES];
    let mut records = Vec::new();
    loop {
        match log.read(&mut buffer) {
            Ok(length @ 1..) => records.push(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            // It was overwritten before it was read; the next read continues behind it.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            _ => break,
        }
    }
    victim(records.iter().map(String::as_str), start, group)
}

/// The last one of this cgroup, or below it, that these records tell of.
fn victim<'a>(records: impl Iterator<Item = &'a str>, start: Duration, wanted: &str) -> Option<String> {
    let (mut is_wanted, mut last) = (false, None);
    for record in records {
        let Some((time, text)) = parse(record) else { continue };
        if time < start {
            continue;
        }
        if text.starts_with("oom-kill:") {
            // Where memory is not counted by cgroup, everything is in the top one.
            let group = field(text, "task_memcg=").unwrap_or("/");
            let below = group.strip_prefix(wanted);
            is_wanted = group == "/" || below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        } else if let Some((_, killed)) = text.split_once("Killed process ")
            && is_wanted
        {
            last = Some(described(killed));
        }
    }
    last
}

/// When it was said, and what.
fn parse(record: &str) -> Option<(Duration, &str)> {
    let (head, text) = record.split_once(';')?;
    let micros = head.split(',').nth(2)?.parse().ok()?;
    Some((Duration::from_micros(micros), text.lines().next()?))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(name)?;
    rest.split(',').next()
}

/// `123 (python3) total-vm:2000kB, anon-rss:1000kB, …` in words.
fn described(killed: &str) -> String {
    let pid: String = killed.chars().take_while(char::is_ascii_digit).collect();
    let name = killed
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(") total-vm"))
        .map_or("a process", |(name, _)| name);
    let mib = killed
        .split_once("anon-rss:")
        .and_then(|(_, rest)| rest.split_once("kB")?.0.parse::<u64>().ok())
        .map_or_else(String::new, |kib| format!(", which used {} MiB", kib / 1024));
    format!("{name} (process {pid}{mib})")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: [&str; 3] = [
        "6,700,90000000,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
         task_memcg=/hearth/312-5f,task=python3,pid=4711,uid=0\n",
        "3,701,90000100,-;Out of memory: Killed process 4711 (a) python (3) total-vm:2097152kB, anon-rss:1048576kB, \
         file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:100kB oom_score_adj:0\n SUBSYSTEM=x\n",
        "6,702,90000200,-;something else\n",
    ];

    #[test]
    fn process_killed_since_the_start_is_named() {
        let at = |seconds| victim(KILLED.into_iter(), Duration::from_secs(seconds), OF_COMMANDS);
        assert_eq!(
            at(80).as_deref(),
            Some("a) python (3 (process 4711, which used 1024 MiB)")
        );
        assert_eq!(at(91), None);
    }

    #[test]
    fn a_service_of_the_vm_is_not_the_commands() {
        let other = KILLED[0].replace("/hearth/312-5f", "/system.slice/cron.service");
        assert_eq!(
            victim([other.as_str(), KILLED[1]].into_iter(), Duration::ZERO, OF_COMMANDS),
            None
        );
        let uncounted = KILLED[0].replace("/hearth/312-5f", "/");
        assert!(victim([uncounted.as_str(), KILLED[1]].into_iter(), Duration::ZERO, OF_COMMANDS).is_some());
        assert_eq!(
            victim(["no record", "1,2"].into_iter(), Duration::ZERO, OF_COMMANDS),
            None
        );
    }

    #[test]
    fn one_command_does_not_name_a_process_of_another() {
        let at_once = |group| victim(KILLED.into_iter(), Duration::ZERO, group);
        assert!(at_once("/hearth/312-5f").is_some());
        assert_eq!(at_once("/hearth/312-5"), None);
        assert_eq!(at_once("/hearth/312-60"), None);
        // The cgroup's own count decides, whatever the log holds.
        let suspect = |killed| Suspect {
            began: None,
            killed: Some(killed),
            group: Some("/hearth/312-5f".to_owned()),
        };
        assert_eq!(killed_of(&suspect(0)), None);
        assert_eq!(killed_of(&suspect(1)).as_deref(), Some("one of its processes"));
        assert_eq!(killed_of(&suspect(3)).as_deref(), Some("3 of its processes"));
    }
}
