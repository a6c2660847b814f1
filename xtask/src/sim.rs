//! `cargo xtask sim`: builds the simulating program (`crates/hearth-sim`, which knows the planner) with full speed, and runs it.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::{process, workspace};

/// `cargo xtask sim`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct SimArgs {
    /// What the program is given; `cargo xtask sim --help` is its own help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(args: &SimArgs) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--locked", "--package", "hearth-sim"];
    process::run(workspace::cargo().args(build))?;
    let mut command = Command::new(workspace::target().join("release/hearth-sim"));
    if !process::run_for_status(command.args(&args.args))?.success() {
        bail!("the simulation broke a promise or could not run; its message is above");
    }
    Ok(())
}
