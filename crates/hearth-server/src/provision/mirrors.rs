//! Bare mirrors of the projects' repositories on the host: one fetch serves all VMs, credentials stay here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hearth_drivers::Locks;
use tokio_util::io::SyncIoBridge;

use super::git::{GitError, MAX_ANSWER, git, git_fed};
use crate::sources::{Grant, Refusal, SourceError, Sources};
use crate::store::Remote;

/// Time limit of a git command that does not touch the network.
const LOCAL_PATIENCE: Duration = Duration::from_secs(300);
/// Bytes between the thread that writes a tar stream and the connection that carries it.
const PIPE_BYTES: usize = 256 * 1024;
/// What is made for a moment beside the mirrors.
const SCRATCH_PREFIX: &str = "clone-";
/// What git calls packs.
const PACK_PREFIX: &str = "pack";
/// Distances between two commits that are kept; then all are forgotten.
const MAX_DISTANCES: usize = 4096;

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
        advice: &'static str,
        /// Git's words.
        source: GitError,
    },
    /// It has no such branch.
    #[error("{repo} has no branch `{branch}` ({url})")]
    NoBranch {
        /// `org/name`
        repo: String,
        /// The branch.
        branch: String,
        /// Where from.
        url: String,
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
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// All mirrors of this installation.
#[derive(Debug, Clone)]
pub struct Mirrors {
    folder: PathBuf,
    sources: Sources,
    locks: Locks<String>,
    /// Tips as they were when they were last fetched, by mirror and branch. A cache.
    tips: Arc<Mutex<Tips>>,
    /// How many commits lie between two: that never changes. A cache.
    distances: Arc<Mutex<HashMap<(String, String), u64>>>,
}

/// Which tip is good enough.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// The one that is there now.
    Newest,
    /// One that was fetched less than this ago.
    Fetched(Duration),
    /// This commit, whenever it was the tip.
    Commit(&'a str),
}

async fn has_commit(mirror: &Path, commit: &str) -> bool {
    let object = format!("{commit}^{{commit}}");
    mirror.exists() && git(mirror, ["cat-file", "-e", &object], LOCAL_PATIENCE).await.is_ok()
}

/// Tips and when they were fetched, by mirror and branch.
type Tips = HashMap<(String, String), (Instant, Tip)>;

/// A commit in a mirror.
#[derive(Debug, Clone)]
pub struct Tip {
    mirror: PathBuf,
    repo: String,
    /// Full hexadecimal name.
    pub commit: String,
    /// What git said while it fetched.
    pub messages: String,
    /// Files that were asked for: a commit's never change.
    files: Arc<Mutex<HashMap<String, Option<Vec<u8>>>>>,
    /// What it has and another commit lacks, as last asked for: VMs that are behind are mostly on the same one.
    pack: Arc<tokio::sync::Mutex<Option<Since>>>,
}

/// A commit, and the pack of what it lacks; `None` when that is nothing.
type Since = (String, Option<Pack>);

/// Objects as git keeps them, with their index: a guest need not compute that.
#[derive(Debug, Clone)]
pub struct Pack {
    /// Name of both files, without their endings.
    pub name: String,
    /// `.pack`
    pub objects: Bytes,
    /// `.idx`
    pub index: Bytes,
}

impl Mirrors {
    /// Mirrors below this folder, of what the policy lets through.
    #[must_use]
    pub fn new(folder: PathBuf, sources: Sources) -> Self {
        Self {
            folder,
            sources,
            locks: Locks::default(),
            tips: Arc::default(),
            distances: Arc::default(),
        }
    }

    /// Where repositories may come from.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// A name for the repository, and its folder.
    pub(super) fn folder_of(&self, grant: &Grant) -> (String, PathBuf) {
        let name = grant.key();
        let mirror = self.folder.join(format!("{}.git", &name[..32]));
        (name, mirror)
    }

    /// How many commits `to` has that `from` lacks, as far as the mirror has both.
    pub async fn behind(&self, remote: &Remote, from: &str, to: &str, patience: Duration) -> Option<u64> {
        if from == to {
            return Some(0);
        }
        let pair = (from.to_owned(), to.to_owned());
        let known = || self.distances.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(distance) = known().get(&pair).copied() {
            return Some(distance);
        }
        let (_, mirror) = self.folder_of(&self.sources.admit(remote).ok()?);
        let range = format!("{from}..{to}");
        let answer = git(&mirror, ["rev-list", "--count", "--end-of-options", &range], patience).await;
        let distance = String::from_utf8_lossy(&answer.ok()?.stdout).trim().parse().ok()?;
        let mut known = known();
        if known.len() >= MAX_DISTANCES {
            known.clear();
        }
        known.insert(pair, distance);
        Some(distance)
    }

    /// Finds the tip of a branch. Where the wanted one is not in the mirror, it is brought up to date; what is there then is the
    /// answer, even where another commit was wanted.
    pub async fn fetch(
        &self,
        repo: &str,
        remote: &Remote,
        branch: &str,
        patience: Duration,
        wanted: Wanted<'_>,
    ) -> Result<Tip, MirrorError> {
        let refused = |source| MirrorError::Refused {
            repo: repo.to_owned(),
            source,
        };
        let grant = self.sources.admit(remote).map_err(refused)?;
        let (name, mirror) = self.folder_of(&grant);
        let place = (name.clone(), branch.to_owned());
        let _one_at_a_time = self.locks.lock(name).await;
        let known = self.tips().get(&place).cloned();
        if let Some((at, tip)) = known {
            let good = match wanted {
                Wanted::Newest => false,
                Wanted::Fetched(fresh) => at.elapsed() < fresh,
                Wanted::Commit(commit) => tip.commit == commit,
            };
            if good {
                return Ok(tip);
            }
        }
        if let Wanted::Commit(commit) = wanted
            && has_commit(&mirror, commit).await
        {
            let tip = Tip::new(mirror, repo, commit.to_owned(), String::new());
            self.tips().insert(place, (Instant::now(), tip.clone()));
            return Ok(tip);
        }
        let tip = self.fetch_now(repo, remote, &grant, branch, patience, mirror).await?;
        self.tips().insert(place, (Instant::now(), tip.clone()));
        Ok(tip)
    }

    fn tips(&self) -> MutexGuard<'_, Tips> {
        self.tips.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch_now(
        &self,
        repo: &str,
        remote: &Remote,
        grant: &Grant,
        branch: &str,
        patience: Duration,
        mirror: PathBuf,
    ) -> Result<Tip, MirrorError> {
        let url = remote.url.as_str();
        let local = |source| MirrorError::Local {
            repo: repo.to_owned(),
            source,
        };
        prepare(&mirror).await.map_err(|source| match source {
            PrepareError::Folder(source) => MirrorError::Folder {
                path: mirror.clone(),
                source,
            },
            PrepareError::Git(source) => local(source),
        })?;
        // The URL is given with each fetch and not kept as a remote: nothing about it is written into the mirror.
        let refspecs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"].map(str::to_owned);
        let command = [
            "fetch",
            "--prune",
            "--no-auto-maintenance",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
        ];
        let fetched = self.sources.git(grant, &mirror, &command, &refspecs, patience).await;
        let fetched = fetched.map_err(|error| {
            let repo = repo.to_owned();
            match error {
                SourceError::Refused(source) => MirrorError::Refused { repo, source },
                SourceError::Git(source) => MirrorError::Fetch {
                    repo,
                    url: url.to_owned(),
                    advice: grant.advice(),
                    source,
                },
            }
        })?;
        let reference = format!("refs/heads/{branch}^{{commit}}");
        let found = git(
            &mirror,
            ["rev-parse", "--verify", "--quiet", "--end-of-options", &reference],
            LOCAL_PATIENCE,
        )
        .await;
        let commit = match found {
            Ok(answer) => String::from_utf8_lossy(&answer.stdout).trim().to_owned(),
            Err(GitError::Failed { .. }) => {
                let (repo, branch, url) = (repo.to_owned(), branch.to_owned(), url.to_owned());
                return Err(MirrorError::NoBranch { repo, branch, url });
            }
            Err(source) => return Err(local(source)),
        };
        Ok(Tip::new(mirror, repo, commit, fetched.stderr))
    }
}

enum PrepareError {
    Folder(std::io::Error),
    Git(GitError),
}

/// Makes the mirror when it is not there or is no repository (a crash in the middle of its making).
async fn prepare(mirror: &Path) -> Result<(), PrepareError> {
    if mirror.exists() && git(mirror, ["rev-parse", "--git-dir"], LOCAL_PATIENCE).await.is_ok() {
        return Ok(());
    }
    match tokio::fs::remove_dir_all(mirror).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(PrepareError::Folder(error)),
        _ => {}
    }
    tokio::fs::create_dir_all(mirror).await.map_err(PrepareError::Folder)?;
    git(mirror, ["init", "--quiet", "--bare", "--template="], LOCAL_PATIENCE)
        .await
        .map_err(PrepareError::Git)?;
    Ok(())
}

impl Tip {
    fn new(mirror: PathBuf, repo: &str, commit: String, messages: String) -> Self {
        Self {
            mirror,
            repo: repo.to_owned(),
            commit,
            messages,
            files: Arc::default(),
            pack: Arc::default(),
        }
    }

    /// The mirror it is in.
    pub(super) fn mirror(&self) -> &Path {
        &self.mirror
    }

    /// A file of the commit; `None` when it has none of that name.
    pub async fn file(&self, path: &str) -> Result<Option<Vec<u8>>, MirrorError> {
        let files = || self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = files().get(path).cloned() {
            return Ok(known);
        }
        let object = format!("{}:{path}", self.commit);
        let content = match git(&self.mirror, ["cat-file", "blob", &object], LOCAL_PATIENCE).await {
            Ok(answer) => Some(answer.stdout),
            Err(GitError::Failed { .. }) => None,
            Err(source) => {
                return Err(MirrorError::Local {
                    repo: self.repo.clone(),
                    source,
                });
            }
        };
        files().insert(path.to_owned(), content.clone());
        Ok(content)
    }

    /// Everything that this commit has and that one has not; `None` when nothing is missing.
    pub async fn pack_since(&self, have: &str, patience: Duration) -> Result<Option<Pack>, MirrorError> {
        // The lock is held while it is made: others that want the same wait for it.
        let mut last = self.pack.lock().await;
        if let Some((_, pack)) = last.as_ref().filter(|(of, _)| of == have) {
            return Ok(pack.clone());
        }
        let pack = self.make_pack(have, patience).await?;
        *last = Some((have.to_owned(), pack.clone()));
        Ok(pack)
    }

    async fn make_pack(&self, have: &str, patience: Duration) -> Result<Option<Pack>, MirrorError> {
        let local = |source| MirrorError::Local {
            repo: self.repo.clone(),
            source,
        };
        let scratch = self.scratch()?;
        let base = scratch.path().join(PACK_PREFIX);
        let options = ["pack-objects", "-q", "--revs", "--non-empty", "--delta-base-offset"];
        let words = options.iter().map(std::ffi::OsStr::new).chain([base.as_os_str()]);
        let wish = format!("{}\n^{have}\n", self.commit).into_bytes();
        let said = git_fed(&self.mirror, words, wish, patience).await.map_err(local)?;
        let name = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        if name.is_empty() {
            return Ok(None);
        }
        let name = format!("{PACK_PREFIX}-{name}");
        let read = async |ending: &str| {
            let path = scratch.path().join(format!("{name}.{ending}"));
            let length = tokio::fs::metadata(&path).await.map(|file| file.len());
            if length.is_ok_and(|length| length > MAX_ANSWER) {
                return Err(local(GitError::TooLong));
            }
            let content = tokio::fs::read(&path).await;
            content
                .map(Bytes::from)
                .map_err(|source| MirrorError::Folder { path, source })
        };
        Ok(Some(Pack {
            objects: read("pack").await?,
            index: read("idx").await?,
            name,
        }))
    }

    /// A folder that is gone when it is dropped, or with the next server.
    fn scratch(&self) -> Result<tempfile::TempDir, MirrorError> {
        tempfile::Builder::new()
            .prefix(SCRATCH_PREFIX)
            .tempdir_in(self.mirror.parent().unwrap_or(Path::new(".")))
            .map_err(|source| MirrorError::Folder {
                path: self.mirror.clone(),
                source,
            })
    }

    /// A tar stream of a `.git` folder: a full clone whose `origin` is `url`, on `branch`, without its files checked out.
    /// It is made on the host, packs and their indexes included, because indexing a pack in an emulated guest is slow.
    pub async fn clone_as_tar(
        &self,
        url: &str,
        branch: &str,
    ) -> Result<impl tokio::io::AsyncRead + Send + use<>, MirrorError> {
        let local = |source| MirrorError::Local {
            repo: self.repo.clone(),
            source,
        };
        let scratch = self.scratch()?;
        let clone = scratch.path().join("c");
        // Objects are hard links to the mirror's: no copy is made before the stream is.
        let options = [
            "clone",
            "--quiet",
            "--no-checkout",
            "--local",
            "--template=",
            "--branch",
            branch,
            "--",
        ];
        let paths = [self.mirror.as_os_str(), clone.as_os_str()];
        let words = options.iter().map(std::ffi::OsStr::new).chain(paths);
        git(scratch.path(), words, LOCAL_PATIENCE).await.map_err(local)?;
        git(&clone, ["remote", "set-url", "origin", url], LOCAL_PATIENCE)
            .await
            .map_err(local)?;
        // The branch may have moved in the mirror since: what was promised is this commit.
        git(&clone, ["update-ref", "HEAD", &self.commit], LOCAL_PATIENCE)
            .await
            .map_err(local)?;
        let (reader, writer) = tokio::io::duplex(PIPE_BYTES);
        let writer = SyncIoBridge::new(writer);
        tokio::task::spawn_blocking(move || {
            let mut tar = tar::Builder::new(writer);
            tar.mode(tar::HeaderMode::Deterministic);
            tar.follow_symlinks(false);
            // When the reader is gone or the disk fails, the stream ends without its end mark and the agent refuses it.
            let done = tar
                .append_dir_all(".", clone.join(".git"))
                .and_then(|()| tar.into_inner())
                .and_then(|mut writer| writer.shutdown());
            if let Err(error) = done {
                tracing::debug!(%error, "a repository's stream to a VM was broken off");
            }
            drop(scratch);
        });
        Ok(reader)
    }
}

/// Removes what an earlier server left of clones and packs it was making.
pub fn sweep(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
