//! Prometheus and promtool, which the tests of metrics and alerts need: Debian's package, unpacked below the target folder. Nothing of it is
//! installed, so no service begins to run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// Where tests find the programs.
pub(crate) const VARIABLE: &str = "HEARTH_PROMETHEUS";
const PACKAGE: &str = "prometheus";

/// The folder that both programs are in once they are fetched.
pub(crate) fn programs() -> PathBuf {
    workspace::target().join(PACKAGE).join("usr/bin")
}

/// Fetches both programs, once.
pub(crate) fn unpack() -> Result<PathBuf> {
    let folder = workspace::target().join(PACKAGE);
    let programs = programs();
    if programs.join("promtool").exists() {
        return Ok(programs);
    }
    let fetched = workspace::target().join(format!("{PACKAGE}.part"));
    drop(fs::remove_dir_all(&fetched));
    fs::create_dir_all(&fetched)?;
    println!("fetching {PACKAGE} with apt");
    process::run(
        Command::new("apt-get")
            .args(["--quiet", "download", PACKAGE])
            .current_dir(&fetched),
    )
    .context("apt cannot fetch it; `apt-get update` may help")?;
    let package = debs(&fetched)?.pop().context("apt fetched no package")?;
    let unpacked = fetched.join("unpacked");
    process::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
    drop(fs::remove_dir_all(&folder));
    // Last: only a whole folder has this name.
    fs::rename(&unpacked, &folder)?;
    drop(fs::remove_dir_all(&fetched));
    Ok(programs)
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    Ok(paths
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect())
}
