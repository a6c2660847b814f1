//! The published description of the HTTP API, `openapi.json`, written anew from the code.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// Where it is in the checkout.
const FILE: &str = "openapi.json";

/// Writes it and says where it is.
pub(crate) fn write() -> Result<PathBuf> {
    let path = workspace::root().join(FILE);
    // Beside it, so that the renaming stays within one file system; a reader sees meanwhile the old one whole.
    let unfinished = workspace::root().join(format!(".{FILE}.{}", std::process::id()));
    let done = fill(&unfinished)
        .and_then(|()| fs::rename(&unfinished, &path).with_context(|| format!("{} cannot be written", path.display())));
    if done.is_err() {
        // It may never have come about.
        let _ = fs::remove_file(&unfinished);
    }
    done.map(|()| path)
}

fn fill(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
    process::run(
        workspace::cargo()
            .args(["run", "--quiet", "--package", "hearth", "--", "openapi"])
            .stdout(file),
    )
}
