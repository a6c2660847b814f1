//! Puts the agent, which goes into every guest image, inside the program: the static binary that `HEARTH_EMBED_AGENT` names
//! (`cargo xtask build` sets it). Without the variable the program is built all the same and says that it has none.

use std::path::Path;
use std::process::Command;

/// Names the agent's binary.
const VARIABLE: &str = "HEARTH_EMBED_AGENT";

fn main() {
    // Without these lines Cargo would run this again whenever any file of the crate changes.
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    if let Err(error) = embed() {
        println!("cargo::error={error}");
    }
}

fn embed() -> Result<(), String> {
    let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
    let (bytes, version) = match named {
        Some(path) => read(Path::new(&path))?,
        None => (Vec::new(), String::new()),
    };
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    let file = Path::new(&out).join("agent");
    std::fs::write(&file, bytes).map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    println!("cargo::rustc-env=HEARTH_AGENT_VERSION={version}");
    Ok(())
}

/// The binary, and what it says its version is.
fn read(path: &Path) -> Result<(Vec<u8>, String), String> {
    println!("cargo::rerun-if-changed={}", path.display());
    let failed = |why: String| format!("{VARIABLE}: the agent {} cannot be used: {why}", path.display());
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let output = Command::new(path).arg("version").output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || version.is_empty() || version.contains('\n') {
        return Err(failed("it does not say its version".to_owned()));
    }
    Ok((bytes, version))
}
