//! What Hearth is compared with: packages of the host's distribution, installed when root. What containers leave when a
//! bench was killed is mounts; processes end with their daemon, which `hearth-bench` ends itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{packages, process, setup};

/// In every Debian and Ubuntu since 2023.
const USUAL: [&str; 3] = ["podman", "runc", "systemd-container"];
/// In backports of Debian 12, and in everything later. It wants copy-on-write storage.
const INCUS: [&str; 2] = ["incus", "btrfs-progs"];

pub(super) fn install() {
    setup::install_if_root(&USUAL, None);
    let suite = if packages::has_candidate("incus") {
        packages::codename().map(|codename| format!("{codename}-backports"))
    } else {
        None
    };
    let suite = suite.filter(|suite| packages::offered_by("incus", suite));
    // Never both from one suite by force: the tools are where they are.
    setup::install_if_root(&INCUS[1..], None);
    setup::install_if_root(&INCUS[..1], suite.as_deref());
}

/// Takes away what is still mounted below the bench's folder.
pub(super) fn end_leftovers(folder: &Path) -> Result<()> {
    let text = fs::read_to_string("/proc/self/mounts")?;
    let below = format!("{}/", folder.display());
    let mut mounts: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| path.starts_with(&below))
        .collect();
    // The innermost first.
    mounts.sort_by_key(|path| std::cmp::Reverse(path.len()));
    for path in mounts {
        process::run(Command::new("umount").arg("--lazy").arg(path))?;
    }
    Ok(())
}
