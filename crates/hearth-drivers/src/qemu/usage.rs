//! What a VM costs: its process's memory as the kernel counts it, and its files.

use std::io;

use crate::VmUsage;
use crate::process::ProcessId;

const BYTES_PER_KIB: u64 = 1024;

/// The memory of a process. An error when it is gone.
pub(super) fn of_process(process: &ProcessId) -> io::Result<VmUsage> {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid))?;
    Ok(parse(&text))
}

/// Dirty pages that no other process maps, and what of them was swapped out, are freed with the process. Clean ones can be read
/// again from their file, and shared ones stay for others.
fn parse(rollup: &str) -> VmUsage {
    let kib = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or_default() * BYTES_PER_KIB
    };
    let resident = kib("Private_Dirty:");
    VmUsage {
        private_bytes: resident + kib("Swap:"),
        shared_bytes: kib("Rss:").saturating_sub(resident),
        disk_bytes: 0,
        saved_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_read() {
        let text = "00400000-7fff [rollup]\nRss:  100 kB\nPss: 50 kB\nShared_Clean: 60 kB\nPrivate_Clean: 10 kB\n\
                    Private_Dirty:  30 kB\nSwap: 5 kB\nSwapPss: 5 kB\n";
        let usage = parse(text);
        assert_eq!(usage.private_bytes, 35 * 1024);
        assert_eq!(usage.shared_bytes, 70 * 1024);
        assert_eq!(parse(""), VmUsage::default());
    }

    #[test]
    fn our_own_memory_is_seen() {
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap())
            .unwrap()
            .unwrap();
        assert!(of_process(&own).unwrap().private_bytes > 0);
    }
}
