//! What the examples need: packages of PyPI and of the npm registry at the versions that the examples pin, each in a folder of its own
//! below the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{npm, python, workspace};

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

/// Only what is pinned: the frameworks name more than their environments use.
fn environment(name: &str, python: &Path) -> Result<()> {
    let (pins, environment) = (source(name).join("requirements.txt"), folder().join(name));
    let called = format!("what the example `{name}` needs");
    python::make_environment(&called, &environment, "python", &pins, python, &["--no-deps"])
}

fn modules() -> Result<()> {
    let name = "typescript";
    let called = format!("what the example `{name}` needs");
    npm::install(&called, &source(name), &folder().join(name), &[])
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
