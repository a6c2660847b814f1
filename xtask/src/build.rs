//! `cargo xtask build`: the one program, with the agent inside; what a person copies to a server.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{agent, process, workspace};

/// `cargo xtask build`.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Quicker to build, slower to run
    #[arg(long)]
    debug: bool,
}

/// Builds it and says where it is.
pub(crate) fn run(args: &BuildArgs) -> Result<PathBuf> {
    let agent = agent::build()?;
    let (folder, profile) = if args.debug {
        ("debug", "dev")
    } else {
        ("release", "release")
    };
    process::run(
        workspace::cargo_with_agent(&agent)
            .args(["build", "--locked", "--package", "hearth", "--profile"])
            .arg(profile),
    )?;
    Ok(workspace::target().join(folder).join("hearth"))
}
