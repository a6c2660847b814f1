//! What the examples need: packages of PyPI and of the npm registry at the versions that the examples pin, each in a folder of its own
//! below the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{process, workspace};

/// Where tests find the folder.
pub(crate) const VARIABLE: &str = "HEARTH_EXAMPLES";
/// Examples in Python that any Python 3 runs.
const PYTHON: [&str; 2] = ["python", "mini-swe-agent"];
/// The example whose framework needs a newer Python than Debian 12 has.
const NEWER_PYTHON: &str = "harbor";
/// The oldest Python that it runs with.
const NEWER: (u32, u32) = (3, 12);

/// The folder that everything is in once it is installed.
pub(crate) fn folder() -> PathBuf {
    workspace::target().join("examples")
}

/// Installs what is missing or pinned otherwise by now.
pub(crate) fn install() -> Result<()> {
    for name in PYTHON {
        environment(name, Path::new("python3"))?;
    }
    match newer_python() {
        Some(python) => environment(NEWER_PYTHON, &python)?,
        None => println!(
            "the example `{NEWER_PYTHON}` does not run: it needs Python {}.{}",
            NEWER.0, NEWER.1
        ),
    }
    modules()
}

fn source(name: &str) -> PathBuf {
    workspace::root().join("examples").join(name)
}

fn is_installed(marker: &Path, pins: &Path) -> Result<bool> {
    let wanted = fs::read(pins)?;
    Ok(fs::read(marker).is_ok_and(|present| present == wanted))
}

/// Only what is pinned: the frameworks name more than their environments use.
fn environment(name: &str, python: &Path) -> Result<()> {
    let pins = source(name).join("requirements.txt");
    let environment = folder().join(name);
    let marker = environment.join("requirements.txt");
    if is_installed(&marker, &pins)? {
        return Ok(());
    }
    println!("installing what the example `{name}` needs from PyPI");
    process::run(Command::new(python).args(["-m", "venv", "--clear"]).arg(&environment))?;
    process::run(
        Command::new(environment.join("bin/pip"))
            .args([
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--requirement",
            ])
            .arg(&pins),
    )?;
    // Last: only a whole environment has it.
    fs::copy(&pins, &marker)?;
    Ok(())
}

fn modules() -> Result<()> {
    let folder = folder().join("typescript");
    let (pins, marker) = (
        source("typescript").join("package-lock.json"),
        folder.join("installed.json"),
    );
    if is_installed(&marker, &pins)? {
        return Ok(());
    }
    println!("installing what the example `typescript` needs from the npm registry");
    fs::create_dir_all(&folder)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(source("typescript").join(file), folder.join(file))?;
    }
    let mut npm = Command::new("npm");
    process::run(
        npm.args(["ci", "--silent", "--no-audit", "--no-fund"])
            .current_dir(&folder),
    )?;
    fs::copy(&pins, &marker)?;
    Ok(())
}

/// The first Python that is new enough: by the names that distributions give them, then those of pyenv.
fn newer_python() -> Option<PathBuf> {
    let mut all: Vec<PathBuf> = ["python3", "python3.14", "python3.13", "python3.12"]
        .map(PathBuf::from)
        .into();
    let pyenv = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv/versions"));
    let versions = pyenv
        .and_then(|folder| fs::read_dir(folder).ok())
        .into_iter()
        .flatten()
        .flatten();
    all.extend(versions.map(|version| version.path().join("bin/python3")));
    let check = format!(
        "import sys, venv; sys.exit(sys.version_info < ({}, {}))",
        NEWER.0, NEWER.1
    );
    all.into_iter().find(|python| {
        let ran = Command::new(python).args(["-c", &check]).output();
        ran.is_ok_and(|ran| ran.status.success())
    })
}
