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
    Ok(free_disk_bytes(path)? / MIB)
}

/// The same in bytes.
pub(crate) fn free_disk_bytes(path: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// How much wants to run on this host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Programs that ran or waited for a processor or a disk, on average over the last minute.
    pub average: f64,
    /// Those that run or wait for a processor at this moment.
    pub running: u32,
    /// Processors there are.
    pub processors: usize,
    /// How much of the last 10 seconds something waited for a processor, percent; `None` where the kernel does not say.
    pub pressure: Option<f64>,
}

/// More than this is not waited for: then the host is no place for VMs.
const MOST_OVERLOAD: f64 = 12.0;

impl Load {
    /// How many times longer than on an idle host things take; 1 where there are processors enough.
    #[must_use]
    pub fn overload(&self) -> f64 {
        (self.average.max(f64::from(self.running)) / self.per()).clamp(1.0, MOST_OVERLOAD)
    }

    /// What wants to run on each processor, over the last minute.
    #[must_use]
    pub fn per_processor(&self) -> f64 {
        self.average / self.per()
    }

    fn per(&self) -> f64 {
        f64::from(u32::try_from(self.processors.max(1)).unwrap_or(u32::MAX))
    }
}

/// How much wants to run now; `None` when the kernel does not say.
#[must_use]
pub fn load() -> Option<Load> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let pressure = std::fs::read_to_string("/proc/pressure/cpu").ok();
    parse_load(
        &std::fs::read_to_string("/proc/loadavg").ok()?,
        pressure.as_deref(),
        processors,
    )
}

fn parse_load(loadavg: &str, pressure: Option<&str>, processors: usize) -> Option<Load> {
    let mut words = loadavg.split_whitespace();
    let average = words.next()?.parse().ok()?;
    let running = words.nth(2)?.split_once('/')?.0.parse().ok()?;
    let some = pressure.and_then(|text| text.lines().find_map(|line| line.strip_prefix("some avg10=")));
    Some(Load {
        average,
        running,
        processors,
        pressure: some.and_then(|rest| rest.split_whitespace().next()?.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_what_wants_to_run_for_each_processor() {
        let pressure =
            "some avg10=83.25 avg60=70.00 avg300=20.11 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        let load = parse_load("13.50 9.10 4.00 7/812 4711\n", Some(pressure), 2).unwrap();
        assert_eq!((load.average, load.running, load.pressure), (13.5, 7, Some(83.25)));
        let overload = |loadavg: &str, processors| parse_load(loadavg, None, processors).unwrap().overload();
        for (loadavg, processors, expected) in [
            ("13.50 9.10 4.00 7/812 4711", 2, 6.75),
            ("0.50 9.10 4.00 1/812 4711", 2, 1.0),
            // It has only just begun: the average does not know yet.
            ("0.50 0.10 0.00 16/812 4711", 2, 8.0),
            ("8.00 8.00 8.00 8/812 4711", 16, 1.0),
            ("900.00 8.00 8.00 8/812 4711", 2, MOST_OVERLOAD),
        ] {
            assert!((overload(loadavg, processors) - expected).abs() < 0.001, "{loadavg}");
        }
        assert_eq!(parse_load("", None, 2), None);
        assert_eq!(parse_load("1.0 2.0 3.0 nonsense 5", None, 2), None);
    }
}
