//! Programs from PyPI, each in a virtual environment of its own below the target folder, at the versions that the checkout names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{process, workspace};

/// Where tests find the Python that has the official client SDK of the Model Context Protocol.
pub(crate) const MCP_VARIABLE: &str = "HEARTH_MCP_PYTHON";
const MCP: &str = "mcp";

/// That Python, installed.
pub(crate) fn install_mcp() -> Result<PathBuf> {
    install(MCP, "python")
}

/// Where it is once it is installed.
pub(crate) fn mcp() -> PathBuf {
    workspace::target().join(MCP).join("bin/python")
}

/// Where the requirements of a tool and what belongs to it are.
pub(crate) fn sources(tool: &str) -> PathBuf {
    workspace::root().join("xtask").join(tool)
}

/// A tool's program. Its environment is made anew when the pinned versions have changed.
pub(crate) fn install(tool: &str, program: &str) -> Result<PathBuf> {
    let requirements = sources(tool).join("requirements.txt");
    let environment = workspace::target().join(tool);
    make_environment(tool, &environment, program, &requirements, Path::new("python3"), &[])?;
    Ok(environment.join("bin").join(program))
}

/// An environment of this Python with what is required in it; nothing where it is there and the same is required. `more`: what pip is told besides.
pub(crate) fn make_environment(
    name: &str,
    environment: &Path,
    program: &str,
    requirements: &Path,
    python: &Path,
    more: &[&str],
) -> Result<()> {
    let installed = environment.join("requirements.txt");
    let wanted = fs::read(requirements)?;
    let is_there = environment.join("bin").join(program).exists();
    if is_there && fs::read(&installed).is_ok_and(|present| present == wanted) {
        return Ok(());
    }
    println!("installing {name} from PyPI");
    process::run(Command::new(python).args(["-m", "venv", "--clear"]).arg(environment))?;
    process::run(
        Command::new(environment.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(more)
            .arg("--requirement")
            .arg(requirements),
    )?;
    // Last: only a whole environment has it.
    fs::copy(requirements, &installed)?;
    Ok(())
}
