//! The static agent: it must run in every guest, whatever C library that has.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{process, workspace};

/// Builds it and says where it is. A target folder of its own: other flags would make Cargo build everything again each time.
pub(crate) fn build() -> Result<PathBuf> {
    let triple = match std::env::consts::ARCH {
        arch @ ("x86_64" | "aarch64") => format!("{arch}-unknown-linux-gnu"),
        other => bail!("Hearth has no guests for the processor {other} yet"),
    };
    let target = workspace::target().join("agent");
    process::run(
        workspace::cargo()
            .args([
                "build",
                "--profile",
                "agent",
                "--locked",
                "--package",
                "hearth-agent",
                "--target",
                &triple,
            ])
            .arg("--target-dir")
            .arg(&target)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            // It would be stronger than the variable above.
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    Ok(target.join(triple).join("agent/hearth-agent"))
}
