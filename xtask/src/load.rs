//! `cargo xtask load`: PostgreSQL's programs, the release build, and the program that makes the load (`crates/hearth-bench/src/load`).

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{agent, process, setup, workspace};

/// `cargo xtask load`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct LoadArgs {
    /// What the program is given; `cargo xtask load --help` is its own help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(args: &LoadArgs) -> Result<()> {
    setup::run()?;
    let packages = ["--package", "hearth", "--package", "hearth-bench"];
    let mut build = workspace::cargo_with_agent(&agent::build()?);
    process::run(build.args(["build", "--release", "--locked"]).args(packages))?;
    let release = workspace::target().join("release");
    let folder = workspace::root().join(".hearth/load");
    let tidy = || match folder.exists() {
        true => fs::remove_dir_all(&folder).with_context(|| format!("{} cannot be removed", folder.display())),
        false => Ok(()),
    };
    // What an earlier run left, its logs among it.
    tidy()?;
    let mut command = Command::new(release.join("hearth-bench"));
    command.arg("load").arg("--hearth").arg(release.join("hearth"));
    command.arg("--folder").arg(&folder);
    if !process::run_for_status(command.args(&args.args))?.success() {
        bail!(
            "the load could not be made; the message is above, and what it left is in {}",
            folder.display()
        );
    }
    tidy()
}
