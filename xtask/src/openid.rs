//! An OpenID Connect provider from npm, at the version that the checkout names: people sign in at it in a test.

use std::path::PathBuf;

use anyhow::Result;

use crate::{npm, python, workspace};

/// Where tests find its packages.
pub(crate) const VARIABLE: &str = "HEARTH_OPENID";
const TOOL: &str = "openid";

/// The folder that they are in once they are fetched.
pub(crate) fn folder() -> PathBuf {
    workspace::target().join(TOOL)
}

/// Fetches them, once.
pub(crate) fn install() -> Result<()> {
    npm::install(TOOL, &python::sources(TOOL), &folder(), &["--ignore-scripts"])
}
