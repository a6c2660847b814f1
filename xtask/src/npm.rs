//! Packages from the npm registry, at the versions that a lock file names.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process;

/// What npm reads.
const FILES: [&str; 2] = ["package.json", "package-lock.json"];

/// The packages of the files in `from`, in `to/node_modules`; nothing where they are there. `more`: what npm is told besides.
pub(crate) fn install(name: &str, from: &Path, to: &Path, more: &[&str]) -> Result<()> {
    let modules = to.join("node_modules");
    let is_same = |file: &&str| {
        let (wanted, present) = (fs::read(from.join(file)), fs::read(modules.join(file)));
        wanted.is_ok_and(|wanted| present.is_ok_and(|present| present == wanted))
    };
    if FILES.iter().all(is_same) {
        return Ok(());
    }
    println!("installing {name} from npm");
    fs::create_dir_all(to)?;
    for file in FILES {
        fs::copy(from.join(file), to.join(file))?;
    }
    let mut npm = Command::new("npm");
    process::run(
        npm.args(["ci", "--silent", "--no-audit", "--no-fund"])
            .args(more)
            .current_dir(to),
    )?;
    // Last: only a whole folder has them.
    for file in FILES {
        fs::copy(from.join(file), modules.join(file))?;
    }
    Ok(())
}
