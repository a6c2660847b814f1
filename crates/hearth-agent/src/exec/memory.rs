//! Whether the kernel killed a process of a command because the VM had no memory left. It says so in its log, and what else ends
//! with `Killed` does not: so its log is read, after a command has failed and something was ever killed for this.

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

/// The time by which [`killed_since`] counts.
pub(super) fn now() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok().map(Duration::from)
}

/// Who was killed, for a person; `None` when nobody was. Blocks for a moment.
pub(super) fn killed_since(start: Option<Duration>) -> Option<String> {
    let start = start?.saturating_sub(CLOCKS_DIFFER);
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
            // It was overwritten before we came; the next read goes on behind it.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            _ => break,
        }
    }
    victim(records.iter().map(String::as_str), start)
}

/// The last one of a command that these records tell of.
fn victim<'a>(records: impl Iterator<Item = &'a str>, start: Duration) -> Option<String> {
    let (mut of_commands, mut last) = (false, None);
    for record in records {
        let Some((time, text)) = parse(record) else { continue };
        if time < start {
            continue;
        }
        if text.starts_with("oom-kill:") {
            // Where memory is not counted by cgroup, everything is in the top one.
            let group = field(text, "task_memcg=").unwrap_or("/");
            of_commands = group == "/" || group.starts_with(OF_COMMANDS);
        } else if let Some((_, killed)) = text.split_once("Killed process ")
            && of_commands
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
    fn whoever_was_killed_since_the_start_is_named() {
        let at = |seconds| victim(KILLED.into_iter(), Duration::from_secs(seconds));
        assert_eq!(
            at(80).as_deref(),
            Some("a) python (3 (process 4711, which used 1024 MiB)")
        );
        assert_eq!(at(91), None);
    }

    #[test]
    fn a_service_of_the_vm_is_not_the_commands() {
        let other = KILLED[0].replace("/hearth/312-5f", "/system.slice/cron.service");
        assert_eq!(victim([other.as_str(), KILLED[1]].into_iter(), Duration::ZERO), None);
        let uncounted = KILLED[0].replace("/hearth/312-5f", "/");
        assert!(victim([uncounted.as_str(), KILLED[1]].into_iter(), Duration::ZERO).is_some());
        assert_eq!(victim(["no record", "1,2"].into_iter(), Duration::ZERO), None);
    }
}
