//! All processes of the VM, as `ps` shows them, and which session each is of.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hearth_guest::exec_session::{ProcessInfo, ProcessList};
use http::StatusCode;

use super::Execs;
use super::sessions::Owners;
use crate::reply::{self, Fault, Reply};
use crate::users::user_names;

/// The kernel counts a process's times in these for programs, on every processor that this runs on.
const TICK_MS: u64 = 10;
/// As much of a command as is shown.
const COMMAND_CHARS: usize = 4096;

/// `GET /v1/processes`
pub(crate) async fn list(execs: Arc<Execs>) -> Result<Reply, Fault> {
    let owners = execs.sessions.owners();
    let items = tokio::task::spawn_blocking(move || all(&owners)).await;
    let items = items.map_err(|error| Fault::bad(error.to_string()))?;
    Ok(reply::json(StatusCode::OK, &ProcessList { items }))
}

fn all(owners: &Owners) -> Vec<ProcessInfo> {
    let names = user_names();
    let boot = boot_unix_ms();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<ProcessInfo> = entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            process(&entry.path(), pid, &names, boot, owners)
        })
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// `None` for one that is gone meanwhile, and for threads of the kernel.
fn process(folder: &Path, pid: u32, names: &HashMap<u32, String>, boot: i64, owners: &Owners) -> Option<ProcessInfo> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let stat = parse_stat(&text("stat")?)?;
    let status = text("status")?;
    let line = fs::read(folder.join("cmdline")).unwrap_or_default();
    if line.is_empty() && stat.state != "Z" && !status.contains("\nVmSize:") {
        return None;
    }
    let field = |name: &str| -> Option<u64> {
        let (_, rest) = status.split_once(name)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let uid = field("\nUid:")
        .and_then(|uid| u32::try_from(uid).ok())
        .unwrap_or_default();
    let group = text("cgroup").unwrap_or_default();
    let group = group
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or_default();
    Some(ProcessInfo {
        pid,
        parent: stat.parent,
        user: names.get(&uid).cloned().unwrap_or_else(|| uid.to_string()),
        rss_kib: field("\nVmRSS:").unwrap_or_default(),
        cpu_ms: stat.cpu_ticks * TICK_MS,
        started_unix_ms: boot.saturating_add(i64::try_from(stat.start_ticks * TICK_MS).unwrap_or_default()),
        command: command(&line).unwrap_or_else(|| format!("[{}]", stat.name)),
        session: owners.of(group, stat.session),
        state: stat.state,
    })
}

/// Program and arguments, with spaces between them.
fn command(line: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(line);
    let words: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
    let text: String = words.join(" ").chars().take(COMMAND_CHARS).collect();
    (!text.trim().is_empty()).then_some(text)
}

struct Stat {
    name: String,
    state: String,
    parent: u32,
    session: i32,
    cpu_ticks: u64,
    start_ticks: u64,
}

/// `/proc/PID/stat`: the name in parentheses may itself hold anything, so everything counts from its end.
fn parse_stat(text: &str) -> Option<Stat> {
    let (before, rest) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Counted as in proc(5), whose third field is the first one here.
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |at: usize| field(at)?.parse::<u64>().ok();
    Some(Stat {
        name,
        state: field(3)?.to_owned(),
        parent: field(4)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        cpu_ticks: number(14)? + number(15)?,
        start_ticks: number(22)?,
    })
}

/// When the VM was started, by the clock of now.
fn boot_unix_ms() -> i64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = uptime
        .split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or_default();
    let uptime = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.saturating_sub(uptime).as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_name_does_not_confuse_the_fields() {
        let text = "42 (a) (b) S 7 41 40 0 -1 4194304 1 2 3 4 50 25 0 0 20 0 1 0 1234 99 9 18446744073709551615";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.state.as_str()), ("a) (b", "S"));
        assert_eq!(
            (stat.parent, stat.session, stat.cpu_ticks, stat.start_ticks),
            (7, 40, 75, 1234)
        );
    }

    #[test]
    fn arguments_are_shown_with_spaces() {
        assert_eq!(command(b"sleep\x0010\0").as_deref(), Some("sleep 10"));
        assert_eq!(command(b""), None);
        assert_eq!(command(b"\0\0"), None);
    }
}
