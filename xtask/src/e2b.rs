//! E2B's own clients, which the tests of that door run unmodified: from PyPI and npm, at the versions that the checkout names.

use std::path::PathBuf;

use anyhow::Result;

use crate::{npm, python, workspace};

/// Where tests find both: `python` leads to an interpreter that has the one, `node_modules` holds the other.
pub(crate) const VARIABLE: &str = "HEARTH_E2B";
const TOOL: &str = "e2b";

/// The folder that both are in once they are fetched.
pub(crate) fn folder() -> PathBuf {
    workspace::target().join(TOOL)
}

/// The interpreter that has the Python client.
pub(crate) fn python() -> PathBuf {
    folder().join("bin/python")
}

/// Fetches both, once.
pub(crate) fn install() -> Result<()> {
    python::install(TOOL, "python")?;
    npm::install(TOOL, &python::sources(TOOL), &folder(), &["--ignore-scripts"])
}
