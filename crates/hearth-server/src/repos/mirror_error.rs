//! What can go wrong with a repository on the host.

use std::path::PathBuf;
use std::time::Duration;

use super::git::GitError;
use crate::repos::sources::{Refusal, SourceError};

/// The other way out.
const WITHOUT_LFS: &str = "or do without: `hearth project set PROJECT --no-lfs`";

/// What can go wrong with a repository; each is one plain sentence.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The rules of the installation do not let its tenant fetch it.
    #[error("{repo} is not fetched: {source}")]
    Refused {
        /// `org/name`
        repo: String,
        /// Which rule.
        source: Refusal,
    },
    /// The host cannot fetch it.
    #[error("cannot fetch {repo} from {url}: {source}; {advice}")]
    Fetch {
        /// `org/name`
        repo: String,
        /// Where from.
        url: String,
        /// What to look at.
        advice: String,
        /// Git's words.
        source: GitError,
    },
    /// Another fetch of it has not ended.
    #[error("the host is still busy with an earlier fetch of {repo}, and a request waits at most {} s for that; try again", .patience.as_secs())]
    Busy {
        /// `org/name`
        repo: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// It has no such branch.
    #[error("{repo} has no branch `{branch}` ({url})")]
    NoBranch {
        /// `org/name`
        repo: String,
        branch: String,
        /// Where from.
        url: String,
    },
    /// A submodule's commit is nowhere.
    #[error("{repo} has no commit {commit} ({url})")]
    NoCommit {
        /// Which submodule of what.
        repo: String,
        /// The commit that its parent names.
        commit: String,
        /// Where from.
        url: String,
    },
    /// A submodule cannot be had.
    #[error("{repo} ({url}) cannot be fetched: {why}")]
    Submodule {
        /// Which submodule of what.
        repo: String,
        /// Its URL as its parent says it.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// What Git LFS keeps cannot be had.
    #[error("what Git LFS keeps of {repo} cannot be fetched from {url} (missing: {missing}): {source}; {WITHOUT_LFS}")]
    Lfs {
        /// `org/name`
        repo: String,
        /// Where from.
        url: String,
        /// Which files are not there.
        missing: Box<str>,
        /// The words of git-lfs.
        source: SourceError,
    },
    /// It is not fetched from there.
    #[error("what Git LFS keeps of {repo} at {url} is not fetched: {why}; {WITHOUT_LFS}")]
    LfsRefused {
        /// `org/name`
        repo: String,
        /// Where it is.
        url: String,
        /// Which rule.
        why: &'static str,
    },
    /// Git LFS says that it fetched everything, and did not.
    #[error("Git LFS did not fetch {missing} of {repo} from {url}; {WITHOUT_LFS}")]
    NoLfsObject {
        /// `org/name`
        repo: String,
        /// Which files are not there.
        missing: Box<str>,
        /// Where from.
        url: String,
    },
    /// The host has no git-lfs.
    #[error(
        "{repo} uses Git LFS, and git-lfs is not installed on the server's machine: install it (`apt-get install git-lfs`); {WITHOUT_LFS}"
    )]
    NoLfs {
        /// `org/name`
        repo: String,
    },
    /// The mirror on the host does not do what it should.
    #[error("the host's copy of {repo} cannot be used: {source}")]
    Local {
        /// `org/name`
        repo: String,
        /// Git's words.
        source: GitError,
    },
    /// A folder on the host cannot be written.
    #[error("the folder {} on the host cannot be used: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
}
