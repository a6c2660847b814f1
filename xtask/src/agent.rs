//! The static agent: it must run in every guest, whatever C library that has.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{process, workspace};

/// Its package.
pub(crate) const PACKAGE: &str = "hearth-agent";

/// Builds it and says where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let (mut command, place) = command()?;
    process::run(&mut command)?;
    Ok(place)
}

/// What builds it, and where it will be. A target folder of its own: other flags would make Cargo build everything again each time.
pub(crate) fn command() -> Result<(Command, PathBuf)> {
    let triple = match std::env::consts::ARCH {
        arch @ ("x86_64" | "aarch64") => format!("{arch}-unknown-linux-gnu"),
        other => bail!("Hearth has no guests for the processor {other} yet"),
    };
    let target = workspace::target().join("agent");
    let mut command = workspace::cargo();
    command
        .args([
            "build",
            "--profile",
            "agent",
            "--locked",
            "--package",
            PACKAGE,
            "--target",
            &triple,
        ])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // It would be stronger than the variable above.
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok((command, target.join(triple).join("agent/hearth-agent")))
}
