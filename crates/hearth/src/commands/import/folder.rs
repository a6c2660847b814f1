//! The files that are imported: a folder, or a repository that is cloned for the moment.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use hearth_api::values::Branch;
use hearth_import::{Entry, Files, Kind, MAX_ENTRIES};

use crate::failure::Failure;
use crate::text::clean_line;

/// How git may fetch.
const PROTOCOLS: &str = "file:git:http:https:ssh";

/// A folder of this machine.
pub(super) struct Folder {
    path: PathBuf,
    name: String,
    /// Removed when it is dropped.
    clone: Option<tempfile::TempDir>,
}

impl Folder {
    /// The folder, or a clone of the repository at this address.
    pub(super) async fn open(source: &str, branch: Option<&Branch>) -> Result<Self, Failure> {
        if !is_address(source) {
            if branch.is_some() {
                return Err(Failure::usage("--branch is for an address; a folder is read as it is"));
            }
            let path = std::fs::canonicalize(source).map_err(|error| Failure::new(format!("{source}: {error}")))?;
            if !path.is_dir() {
                return Err(Failure::new(format!("{source} is no folder")));
            }
            let name = path
                .file_name()
                .map_or_else(|| "app".into(), |name| name.to_string_lossy().into_owned());
            return Ok(Self {
                path,
                name,
                clone: None,
            });
        }
        let after_scheme = source.split_once("://").map_or("", |(_, rest)| rest);
        let before_host = after_scheme.split('/').next().unwrap_or_default().rsplit_once('@');
        if before_host.is_some_and(|(user, _)| user.contains(':')) {
            return Err(Failure::usage(
                "an address must hold no password; let git find it with a credential helper",
            ));
        }
        let clone = tempfile::tempdir()?;
        let path = clone.path().join("clone");
        let mut git = tokio::process::Command::new("git");
        git.args(["clone", "--quiet", "--depth", "1", "--single-branch", "--no-tags"]);
        if let Some(branch) = branch {
            git.args(["--branch", branch.as_str()]);
        }
        git.arg("--").arg(source).arg(&path);
        git.env("GIT_ALLOW_PROTOCOL", PROTOCOLS)
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let said = git
            .output()
            .await
            .map_err(|error| Failure::new(format!("git cannot be run: {error}")))?;
        if !said.status.success() {
            let said = String::from_utf8_lossy(&said.stderr);
            let why = said.lines().find_map(|line| line.strip_prefix("fatal: "));
            let why = why.or_else(|| said.lines().rfind(|line| !line.trim().is_empty()));
            let why = clean_line(why.unwrap_or("git said nothing"));
            return Err(Failure::new(format!("{source} cannot be cloned: {why}")));
        }
        let name = source
            .trim_end_matches('/')
            .trim_end_matches(".git")
            .rsplit(['/', ':'])
            .next()
            .unwrap_or("app");
        Ok(Self {
            path,
            name: name.to_owned(),
            clone: Some(clone),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the repository is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_clone(&self) -> bool {
        self.clone.is_some()
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.path.join(file).symlink_metadata().is_ok()
    }
}

/// Git's two ways to write an address. What is there as a folder is one.
fn is_address(source: &str) -> bool {
    let scp = source.split_once(':').is_some_and(|(host, _)| !host.contains('/'));
    (source.contains("://") || scp) && !Path::new(source).exists()
}

impl Files for Folder {
    fn list(&self, folder: &str) -> Result<Vec<Entry>, String> {
        let listed = std::fs::read_dir(self.path.join(folder)).map_err(|error| error.to_string())?;
        let mut entries = Vec::new();
        for entry in listed.take(MAX_ENTRIES) {
            let entry = entry.map_err(|error| error.to_string())?;
            // None that is read has a name of another kind.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            // Of a link itself, not of where it leads.
            let about = entry.metadata().map_err(|error| error.to_string())?;
            let kind = match about.file_type() {
                kind if kind.is_symlink() => Kind::Link,
                kind if kind.is_dir() => Kind::Folder,
                kind if kind.is_file() => Kind::File(about.len()),
                _ => Kind::Other,
            };
            entries.push(Entry { name, kind });
        }
        Ok(entries)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        std::fs::read(self.path.join(path)).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_folders() {
        for address in [
            "https://git.example/a/b.git",
            "file:///srv/a",
            "git@git.example:a/b",
            "ssh://git.example/a",
        ] {
            assert!(is_address(address), "{address}");
        }
        for folder in [".", "/srv/a", "a/b", "./a:b"] {
            assert!(!is_address(folder), "{folder}");
        }
    }
}
