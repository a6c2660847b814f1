//! Programs of others that the tests need and nobody else: Debian's packages, unpacked below the target folder. Nothing of them is installed,
//! so no service begins to run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// A package, and one of its programs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unpacked {
    package: &'static str,
    program: &'static str,
    /// Where tests find the programs.
    pub(crate) variable: &'static str,
}

/// Prometheus and promtool, for metrics and alerts.
pub(crate) const PROMETHEUS: Unpacked = Unpacked {
    package: "prometheus",
    program: "promtool",
    variable: "HEARTH_PROMETHEUS",
};

/// An authority that speaks ACME, for certificates.
pub(crate) const PEBBLE: Unpacked = Unpacked {
    package: "pebble",
    program: "pebble",
    variable: "HEARTH_PEBBLE",
};

impl Unpacked {
    fn folder(self) -> PathBuf {
        workspace::target().join(self.package)
    }

    /// The folder that the programs are in once they are fetched.
    pub(crate) fn programs(self) -> PathBuf {
        self.folder().join("usr/bin")
    }

    /// Fetches the programs, once.
    pub(crate) fn fetch(self) -> Result<()> {
        if self.programs().join(self.program).exists() {
            return Ok(());
        }
        let fetched = workspace::target().join(format!("{}.part", self.package));
        drop(fs::remove_dir_all(&fetched));
        fs::create_dir_all(&fetched)?;
        println!("fetching {} with apt", self.package);
        process::run(
            Command::new("apt-get")
                .args(["--quiet", "download", self.package])
                .current_dir(&fetched),
        )
        .context("apt cannot fetch it; `apt-get update` may help")?;
        let deb = debs(&fetched)?.pop().context("apt fetched no package")?;
        let unpacked = fetched.join("unpacked");
        process::run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&unpacked))?;
        drop(fs::remove_dir_all(self.folder()));
        // Last: only a whole folder has this name.
        fs::rename(&unpacked, self.folder())?;
        drop(fs::remove_dir_all(&fetched));
        Ok(())
    }
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    Ok(paths
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect())
}
