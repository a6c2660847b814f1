//! What the kernel says of a VM's process.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Memory of one process, MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Dirty pages of its own and what of them was swapped out: goes away with it.
    pub(crate) private: f64,
    /// The same, and its share of what several processes map.
    pub(crate) share: f64,
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    let mib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|idle| idle.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or_default() / 1024.0
    };
    Ok(Memory {
        private: mib("Private_Dirty:") + mib("Swap:"),
        share: mib("Pss:") + mib("SwapPss:"),
    })
}

/// The process that a VM's record names.
pub(crate) fn pid(vm_folder: &Path) -> Result<u32> {
    let path = vm_folder.join("vm.json");
    let text = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let record: serde_json::Value = serde_json::from_slice(&text)?;
    let pid = record["process"]["pid"]
        .as_u64()
        .context("a VM's record names no process")?;
    Ok(u32::try_from(pid)?)
}

/// A process's words.
pub(crate) fn words(pid: u32) -> Result<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word));
    let mut words: Vec<String> = words.map(std::borrow::Cow::into_owned).collect();
    // The line ends with a zero.
    words.pop();
    Ok(words)
}

/// The folders of the VMs that exist.
pub(crate) fn folders(data: &Path) -> Vec<std::path::PathBuf> {
    let Ok(read) = fs::read_dir(data.join("vms")) else {
        return Vec::new();
    };
    read.filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .collect()
}
