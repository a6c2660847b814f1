//! `cargo xtask deny`: licences, sources and doubled versions of everything that is compiled in, checked by cargo-deny against
//! `deny.toml`. Its database of known faults lives on GitHub and is left out: the check must not need another network than Cargo's.

use std::process::Command;

use anyhow::Result;

use crate::{process, python, workspace};

/// The tool's folder, and its environment.
const TOOL: &str = "deny";

pub(crate) fn run() -> Result<()> {
    let program = python::install(TOOL, "cargo-deny")?;
    process::run(
        Command::new(program)
            .args(["--locked", "--log-level", "error"])
            .args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
            .current_dir(workspace::root()),
    )
}
