//! Ends what a demo or a bench has left: VMs, their network's helpers, a server of a run that was killed. Only processes that the data
//! folder's own records name, each checked by its start time: process ids come back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{process, workspace};

/// How long a process may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(20);
/// The start time's place in `/proc/PID/stat`, counted after the program's name (proc(5) has it as field 22).
const START_FIELD: usize = 19;

/// The folders of the VMs that exist.
pub(crate) fn vms(data: &Path) -> Vec<PathBuf> {
    let Ok(read) = fs::read_dir(data.join("vms")) else {
        return Vec::new();
    };
    read.filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .collect()
}

/// Ends every process that the data folder knows of.
pub(crate) fn end_leftovers(data: &Path) -> Result<()> {
    // The server first: it would make new VMs.
    for pid in servers(data) {
        end(pid, Signal::SIGTERM, || servers(data).contains(&pid))?;
    }
    let mut records: Vec<PathBuf> = vms(data).into_iter().map(|vm| vm.join("vm.json")).collect();
    records.push(data.join("network/network.json"));
    for record in records {
        let Ok(text) = fs::read(&record) else { continue };
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        let mut named = Vec::new();
        collect(&value, &mut named);
        for (pid, started) in named {
            end(pid, Signal::SIGKILL, || start_of(pid) == Some(started))?;
        }
    }
    Ok(())
}

/// What is known of the host's virtualisation. Finding it out takes ten seconds where it does not work; the record itself
/// says for which kernel, QEMU and image it holds.
const VERDICT: &str = "kvm-verdict.json";

/// Gives a new data folder what an earlier one knew. Without it all works, only later.
pub(crate) fn bring_verdict(data: &Path) {
    let _ = fs::copy(kept_verdict(), data.join(VERDICT));
}

/// Keeps it for the next demo.
pub(crate) fn keep_verdict(data: &Path) {
    let _ = fs::copy(data.join(VERDICT), kept_verdict());
}

fn kept_verdict() -> PathBuf {
    workspace::shared_images().with_file_name(VERDICT)
}

fn end(pid: i32, signal: Signal, alive: impl Fn() -> bool) -> Result<()> {
    if !alive() {
        return Ok(());
    }
    process::signal(pid, signal);
    if !process::wait_until(END_LIMIT, || !alive())? {
        bail!("process {pid} of the last run does not end");
    }
    Ok(())
}

/// Everything in a record that names a process: `{"pid": …, "started": …}`.
fn collect(value: &Value, into: &mut Vec<(i32, u64)>) {
    if let (Some(pid), Some(started)) = (value["pid"].as_i64(), value["started"].as_u64())
        && let Ok(pid) = i32::try_from(pid)
    {
        into.push((pid, started));
    }
    match value {
        Value::Object(map) => map.values().for_each(|inner| collect(inner, into)),
        Value::Array(list) => list.iter().for_each(|inner| collect(inner, into)),
        _ => {}
    }
}

/// When the process started, in clock ticks since the host booted; `None` when it is gone (or only its remains are there).
fn start_of(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may itself hold blanks and parentheses.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if matches!(fields.next(), Some("Z" | "X")) {
        return None;
    }
    fields.nth(START_FIELD - 1)?.parse().ok()
}

/// Servers that were started with exactly this data folder, as the demo starts them.
fn servers(data: &Path) -> Vec<i32> {
    let Ok(read) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let wanted = data.to_string_lossy();
    let is_ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let program = args.first().is_some_and(|program| program.ends_with(b"/hearth"));
        let folder = args
            .windows(2)
            .any(|pair| pair[0] == b"--data-dir" && pair[1] == wanted.as_bytes());
        program && folder && args.contains(&b"serve".as_slice())
    };
    read.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(is_ours)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_wherever_a_record_names_them() {
        let record = serde_json::json!({
            "holder": {"pid": 7, "started": 11, "boot": "b"},
            "uplink": null,
            "retired": [{"pid": 8, "started": 12, "boot": "b"}],
        });
        let mut named = Vec::new();
        collect(&record, &mut named);
        assert_eq!(named, [(7, 11), (8, 12)]);
    }

    #[test]
    fn our_own_start_time_can_be_read() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_of(own).unwrap() > 0);
        assert_eq!(start_of(i32::MAX), None);
    }
}
