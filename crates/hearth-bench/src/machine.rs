//! Where it was measured: without it a figure means nothing.

use std::fs;

use anyhow::{Context as _, Result};
use hearth_image as image;
use serde::Serialize;
use tokio::process::Command;

use crate::Args;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_mib: u64,
    /// Of the last minute, five and fifteen.
    pub(crate) load: String,
    /// Our own VMs count too.
    pub(crate) load_at_end: String,
    pub(crate) kernel: String,
    pub(crate) quick: bool,
    pub(crate) versions: Vec<(String, String)>,
}

pub(crate) async fn look(args: &Args) -> Result<Machine> {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let memory = field("/proc/meminfo", "MemTotal");
    let image = image::find(&args.images, None).context("there is no guest image")?;
    let mut versions = vec![
        ("hearth".to_owned(), first_line(&args.hearth.to_string_lossy()).await),
        ("QEMU".to_owned(), first_line("qemu-system-x86_64").await),
        ("image".to_owned(), image.manifest.digest[..12].to_owned()),
    ];
    for program in ["podman", "runc", "incus", "systemd-nspawn"] {
        let version = first_line(program).await;
        if !version.is_empty() {
            versions.push((program.to_owned(), version));
        }
    }
    Ok(Machine {
        processor: field("/proc/cpuinfo", "model name"),
        processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_mib: memory
            .split_whitespace()
            .next()
            .and_then(|kib| kib.parse::<u64>().ok())
            .unwrap_or_default()
            / 1024,
        load: load(),
        load_at_end: String::new(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        quick: args.quick,
        versions,
    })
}

/// How busy the machine is, ours and others' work together.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// What a program says of its version; nothing when there is no such program.
async fn first_line(program: &str) -> String {
    let output = Command::new(program).arg("--version").output().await;
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or_default().trim().to_owned()
}
