//! Figures of this host that the drivers and the checks both need.

use std::path::Path;

/// Memory that new programs can have without swapping, MiB; `None` when the kernel does not say.
pub(crate) fn available_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

/// Space an ordinary user can still fill, MiB.
pub(crate) fn free_disk_mib(path: &Path) -> std::io::Result<u64> {
    const MIB: u64 = 1024 * 1024;
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) / MIB)
}
