//! E2B's own clients, which the tests of that door run unmodified: from PyPI and npm, at the versions that the checkout names.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{process, python, workspace};

/// Where tests find both: `python` leads to an interpreter that has the one, `node_modules` holds the other.
pub(crate) const VARIABLE: &str = "HEARTH_E2B";
const TOOL: &str = "e2b";
/// What npm is told.
const PACKAGES: [&str; 2] = ["package.json", "package-lock.json"];

/// The folder that both are in once they are fetched.
pub(crate) fn folder() -> PathBuf {
    workspace::target().join(TOOL)
}

/// Fetches both, once.
pub(crate) fn install() -> Result<()> {
    python::install(TOOL, "python")?;
    let (from, to) = (python::sources(TOOL), folder());
    let is_same = |name: &&str| {
        let (wanted, present) = (fs::read(from.join(name)), fs::read(to.join("node_modules").join(name)));
        wanted.is_ok_and(|wanted| present.is_ok_and(|present| present == wanted))
    };
    if PACKAGES.iter().all(is_same) {
        return Ok(());
    }
    println!("installing {TOOL} from npm");
    for name in PACKAGES {
        fs::copy(from.join(name), to.join(name))?;
    }
    process::run(
        Command::new("npm")
            .args(["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"])
            .current_dir(&to),
    )?;
    // Last: only a whole folder has them.
    for name in PACKAGES {
        fs::copy(from.join(name), to.join("node_modules").join(name))?;
    }
    Ok(())
}
