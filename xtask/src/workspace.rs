//! Where things are in the checkout.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The checkout's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where Cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// The profile of the demo, in the root manifest.
pub(crate) const DEMO_PROFILE: &str = "demo";

/// The program as the demo builds it.
pub(crate) fn demo_program() -> PathBuf {
    target().join(DEMO_PROFILE).join("hearth")
}

/// Guest images of the tests and the bench: they are named by the digest of what is in them. The demo's lie where every data
/// folder of the machine finds them.
pub(crate) fn shared_images() -> PathBuf {
    root().join(".hearth/cache/images")
}

/// Packages that images are made from; with them a build needs no network.
pub(crate) fn shared_packages() -> PathBuf {
    root().join(".hearth/cache/packages")
}

/// The cargo that runs us, told nothing of the package that it runs: some build scripts take that for their own, and then
/// all that depends on them is built again whenever somebody calls cargo without us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(ours) {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

/// Names the agent that a build of the program carries. Set alike wherever the program is built with one: Cargo builds it anew
/// when the variable changes.
const EMBED_VARIABLE: &str = "HEARTH_EMBED_AGENT";

/// The same cargo, and the program that it builds has this agent inside.
pub(crate) fn cargo_with_agent(agent: &Path) -> Command {
    let mut command = cargo();
    command.env(EMBED_VARIABLE, agent);
    command
}

/// Makes `<data_dir>/images` a link to the shared images, so that a data folder can go while they stay.
pub(crate) fn link_images(data_dir: &Path) -> std::io::Result<()> {
    let shared = shared_images();
    std::fs::create_dir_all(&shared)?;
    std::fs::create_dir_all(data_dir)?;
    let link = data_dir.join("images");
    if link.symlink_metadata().is_err() {
        std::os::unix::fs::symlink(shared, link)?;
    }
    Ok(())
}

/// The folders of the workspace's packages; each is named as its package.
pub(crate) fn packages() -> std::io::Result<Vec<PathBuf>> {
    let mut folders = vec![root().join("xtask")];
    for entry in std::fs::read_dir(root().join("crates"))? {
        folders.push(entry?.path());
    }
    folders.sort();
    Ok(folders)
}

/// The Rust files below a folder.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
    {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
