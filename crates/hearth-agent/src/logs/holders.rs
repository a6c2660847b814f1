//! Which files some process of this machine holds open for writing: what `/proc` says of every process.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The kernel's view of the processes.
const PROCESSES: &str = "/proc";
/// In the mode of a link in `/proc/PID/fd`: the file behind it is open for writing.
const WRITES: u32 = 0o200;

/// Those of the files that a process may still write to; `None` when the processes cannot be listed. A process of another user is
/// passed over unless this is root.
pub(super) fn held_for_writing(files: &[PathBuf]) -> Option<BTreeSet<PathBuf>> {
    if files.is_empty() {
        return Some(BTreeSet::new());
    }
    // As the kernel names them: without links on the way.
    let named: Vec<(PathBuf, &PathBuf)> = files
        .iter()
        .filter_map(|file| Some((file.canonicalize().ok()?, file)))
        .collect();
    let mut held = BTreeSet::new();
    for process in fs::read_dir(PROCESSES).ok()?.flatten() {
        let is_process = process
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit());
        if is_process {
            // One that ends meanwhile holds nothing.
            for link in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
                let Ok(behind) = fs::read_link(link.path()) else {
                    continue;
                };
                let file = named.iter().find(|(name, _)| *name == behind);
                if let Some((_, file)) = file
                    && writes(&link.path())
                {
                    held.insert((*file).clone());
                }
            }
        }
    }
    Some(held)
}

fn writes(link: &Path) -> bool {
    fs::symlink_metadata(link).is_ok_and(|metadata| metadata.permissions().mode() & WRITES != 0)
}
