//! Bare mirrors of the projects' repositories on the host: one fetch serves all VMs, credentials stay here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hearth_core::checkout::Remote;
use hearth_drivers::Locks;
use tokio::sync::OwnedMutexGuard;
use tokio_util::io::SyncIoBridge;

use super::extra_content::{ExtraContent, ExtraContentKey};
use super::git::{Answer, GitError, MAX_ANSWER, git, git_fed};
use super::lfs::LfsObject;
use super::mirror_use::{InUse, Uses};
use super::remote_branches::point_head;

pub use super::mirror_error::MirrorError;
use crate::repos::sources::{Grant, SourceError, Sources, credential_advice};

/// Time limit of a git command that does not touch the network.
pub const LOCAL_PATIENCE: Duration = Duration::from_secs(300);
/// Bytes between the thread that writes a tar stream and the connection that carries it.
const PIPE_BYTES: usize = 256 * 1024;
/// What is made for a moment beside the mirrors.
pub(super) const SCRATCH_PREFIX: &str = "clone-";
/// What git calls packs.
const PACK_PREFIX: &str = "pack";
/// Distances between two commits that are kept; then all are forgotten.
const MAX_DISTANCES: usize = 4096;

/// So much is remembered of what comes along with commits; then all is forgotten.
const MAX_ALONG: usize = 4096;

/// All mirrors of this installation.
#[derive(Debug, Clone)]
pub struct Mirrors {
    folder: PathBuf,
    sources: Sources,
    locks: Locks<String>,
    /// Who works with which mirror.
    pub(super) uses: Uses,
    /// Branch heads as they were when they were last fetched, by mirror and branch. A cache.
    heads: Arc<Mutex<CachedHeads>>,
    /// How many commits lie between two: that never changes. A cache.
    distances: Arc<Mutex<HashMap<(String, String), u64>>>,
    /// What comes along with a commit, all of it fetched: that never changes. A cache.
    extra_content: Arc<Mutex<HashMap<ExtraContentKey, Arc<ExtraContent>>>>,
}

/// Which head is good enough.
#[derive(Debug, Clone, Copy)]
pub enum Freshness<'a> {
    /// The one that is there now.
    Newest,
    /// One that was fetched less than this ago.
    Fetched(Duration),
    /// This commit, whenever it was the head.
    Commit(&'a str),
}

pub async fn has_commit(mirror: &Path, commit: &str) -> bool {
    let object = format!("{commit}^{{commit}}");
    mirror.exists() && git(mirror, ["cat-file", "-e", &object], LOCAL_PATIENCE).await.is_ok()
}

/// Branch heads and when they were fetched, by mirror and branch.
type CachedHeads = HashMap<(String, String), (Instant, MirrorCommit)>;

/// A commit in a mirror.
#[derive(Debug, Clone)]
pub struct MirrorCommit {
    mirror: InUse,
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
            uses: Uses::default(),
            heads: Arc::default(),
            distances: Arc::default(),
            extra_content: Arc::default(),
        }
    }

    /// Where repositories may come from.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// What may be fetched from there, and how.
    pub fn admit(&self, repo: &str, remote: &Remote) -> Result<Grant, MirrorError> {
        self.sources.admit(remote).map_err(|source| MirrorError::Refused {
            repo: repo.to_owned(),
            source,
        })
    }

    /// A name for the repository that is fetched so, and its folder.
    pub fn folder_of(&self, grant: &Grant) -> (String, PathBuf) {
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

    /// Finds the head of a branch. Where the wanted one is not in the mirror, it is brought up to date; what is there then is the
    /// answer, even where another commit was wanted.
    pub async fn fetch(
        &self,
        repo: &str,
        remote: &Remote,
        branch: &str,
        patience: Duration,
        freshness: Freshness<'_>,
    ) -> Result<MirrorCommit, MirrorError> {
        let refused = |source| MirrorError::Refused {
            repo: repo.to_owned(),
            source,
        };
        let grant = self.sources.admit(remote).map_err(refused)?;
        let (name, mirror) = self.folder_of(&grant);
        let place = (name.clone(), branch.to_owned());
        let mirror = self.uses.begin(mirror);
        let known = || {
            let known = self.heads().get(&place).cloned();
            known.filter(|(at, head)| match freshness {
                Freshness::Newest => false,
                Freshness::Fetched(fresh) => at.elapsed() < fresh,
                Freshness::Commit(commit) => head.commit == commit,
            })
        };
        // What is there already does not wait until others have fetched.
        if let Some((_, head)) = known() {
            return Ok(head);
        }
        if let Freshness::Commit(commit) = freshness
            && has_commit(&mirror, commit).await
        {
            let head = MirrorCommit::new(mirror, repo, commit.to_owned(), String::new());
            self.heads().insert(place, (Instant::now(), head.clone()));
            return Ok(head);
        }
        let began = Instant::now();
        let _one_at_a_time = self.alone_at(repo, name, patience).await?;
        if let Some((_, head)) = known() {
            return Ok(head);
        }
        let left = patience.saturating_sub(began.elapsed());
        let head = self.fetch_now(repo, remote, &grant, branch, left, mirror).await?;
        self.heads().insert(place, (Instant::now(), head.clone()));
        Ok(head)
    }

    /// Waits until nobody else is at it, but not for ever: a fetch may take long.
    pub(super) async fn alone_at(
        &self,
        repo: &str,
        it: String,
        patience: Duration,
    ) -> Result<OwnedMutexGuard<()>, MirrorError> {
        let lock = tokio::time::timeout(patience, self.locks.lock(it)).await;
        lock.map_err(|_| MirrorError::Busy {
            repo: repo.to_owned(),
            patience,
        })
    }

    /// What is known to come along with a commit.
    pub fn cached_extra_content(&self, key: &ExtraContentKey) -> Option<Arc<ExtraContent>> {
        let known = self.extra_content.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).cloned()
    }

    pub fn cache_extra_content(&self, key: ExtraContentKey, extra_content: Arc<ExtraContent>) {
        let mut known = self.extra_content.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ALONG {
            known.clear();
        }
        known.insert(key, extra_content);
    }

    /// A commit that the mirror of this URL has, if it has it.
    pub async fn commit_at(&self, repo: &str, remote: &Remote, commit: &str) -> Option<MirrorCommit> {
        let (_, mirror) = self.folder_of(&self.sources.admit(remote).ok()?);
        let mirror = self.uses.begin(mirror);
        let there = has_commit(&mirror, commit).await;
        there.then(|| MirrorCommit::new(mirror, repo, commit.to_owned(), String::new()))
    }

    /// Where they lie.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Forgets what is remembered of the commits in a mirror.
    pub(super) fn forget(&self, mirror: &Path) {
        self.heads().retain(|_, (_, head)| head.mirror() != mirror);
        let mut extra_content = self.extra_content.lock().unwrap_or_else(PoisonError::into_inner);
        extra_content.retain(|(of, ..), extra_content| of != mirror && !extra_content.lies_in(mirror));
    }

    fn heads(&self) -> MutexGuard<'_, CachedHeads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch_now(
        &self,
        repo: &str,
        remote: &Remote,
        grant: &Grant,
        branch: &str,
        patience: Duration,
        mirror: InUse,
    ) -> Result<MirrorCommit, MirrorError> {
        let url = remote.url.as_str();
        let local = |source| MirrorError::Local {
            repo: repo.to_owned(),
            source,
        };
        let fetched = self.fetch_heads(repo, grant, url, patience, &mirror).await?;
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
        Ok(MirrorCommit::new(mirror, repo, commit, fetched.stderr))
    }

    /// All branches and tags; what is gone there goes here too.
    pub async fn fetch_heads(
        &self,
        repo: &str,
        grant: &Grant,
        url: &str,
        patience: Duration,
        mirror: &Path,
    ) -> Result<Answer, MirrorError> {
        let refspecs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"].map(str::to_owned);
        let answer = self
            .fetch_refs(repo, (grant, url), &["--prune"], &refspecs, patience, mirror)
            .await?;
        if let Err(error) = point_head(&self.sources, grant, patience, mirror).await {
            tracing::debug!(repo, %error, "which branch is the repository's default is not known");
        }
        Ok(answer)
    }

    /// These references, into a mirror that is made when it is not there.
    pub async fn fetch_refs(
        &self,
        repo: &str,
        (grant, url): (&Grant, &str),
        options: &[&str],
        refspecs: &[String],
        patience: Duration,
        mirror: &Path,
    ) -> Result<Answer, MirrorError> {
        prepare(mirror).await.map_err(|source| match source {
            PrepareError::Folder(source) => MirrorError::Folder {
                path: mirror.to_owned(),
                source,
            },
            PrepareError::Git(source) => MirrorError::Local {
                repo: repo.to_owned(),
                source,
            },
        })?;
        let mut command = vec![
            "fetch",
            "--no-auto-maintenance",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
        ];
        command.extend(options);
        // The URL is given each time and not kept as a remote: nothing about it is written into the mirror.
        let fetched = self.sources.git(grant, mirror, &command, refspecs, patience).await;
        fetched.map_err(|error| {
            let repo = repo.to_owned();
            match error {
                SourceError::Refused(source) => MirrorError::Refused { repo, source },
                SourceError::Git(source) => MirrorError::Fetch {
                    repo,
                    url: url.to_owned(),
                    advice: grant.advice(),
                    source,
                },
                SourceError::WithCredential { host, source } => MirrorError::Fetch {
                    repo,
                    url: url.to_owned(),
                    advice: credential_advice(&host),
                    source,
                },
            }
        })
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

impl MirrorCommit {
    pub fn new(mirror: InUse, repo: &str, commit: String, messages: String) -> Self {
        Self {
            mirror,
            repo: repo.to_owned(),
            commit,
            messages,
            files: Arc::default(),
            pack: Arc::default(),
        }
    }

    /// What its repository is called.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The mirror it is in.
    pub fn mirror(&self) -> &Path {
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
        let pack = self.make_pack(Some(have), patience).await?;
        *last = Some((have.to_owned(), pack.clone()));
        Ok(pack)
    }

    /// Everything that this commit has.
    pub async fn pack_whole(&self, patience: Duration) -> Result<Option<Pack>, MirrorError> {
        self.make_pack(None, patience).await
    }

    async fn make_pack(&self, have: Option<&str>, patience: Duration) -> Result<Option<Pack>, MirrorError> {
        let local = |source| MirrorError::Local {
            repo: self.repo.clone(),
            source,
        };
        let scratch = self.scratch()?;
        let base = scratch.path().join(PACK_PREFIX);
        let options = ["pack-objects", "-q", "--revs", "--non-empty", "--delta-base-offset"];
        let words = options.iter().map(std::ffi::OsStr::new).chain([base.as_os_str()]);
        let without = have.map(|have| format!("^{have}\n")).unwrap_or_default();
        let wish = format!("{}\n{without}", self.commit).into_bytes();
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
                path: self.mirror.to_path_buf(),
                source,
            })
    }

    /// A tar stream of a `.git` folder: a full clone whose `origin` is `url`, without its files checked out.
    /// It is made on the host, packs and their indexes included, because indexing a pack in an emulated guest is slow.
    pub async fn clone_as_tar(
        &self,
        url: &str,
        parts: CloneParts<'_>,
    ) -> Result<impl tokio::io::AsyncRead + Send + use<>, MirrorError> {
        let local = |source| MirrorError::Local {
            repo: self.repo.clone(),
            source,
        };
        let scratch = self.scratch()?;
        let clone = scratch.path().join("c");
        // Objects are hard links to the mirror's: no copy is made before the stream is.
        let options = ["clone", "--quiet", "--no-checkout", "--local", "--template="];
        let branch = parts.branch.map(|branch| ["--branch", branch]);
        let options = options.into_iter().chain(branch.into_iter().flatten()).chain(["--"]);
        let paths = [self.mirror.as_os_str(), clone.as_os_str()];
        let words = options.map(std::ffi::OsStr::new).chain(paths);
        git(scratch.path(), words, LOCAL_PATIENCE).await.map_err(local)?;
        git(&clone, ["remote", "set-url", "origin", url], LOCAL_PATIENCE)
            .await
            .map_err(local)?;
        // The branch may have moved in the mirror since: what was promised is this commit.
        let update: &[&str] = match parts.branch {
            Some(_) => &["update-ref", "HEAD", &self.commit],
            None => &["update-ref", "--no-deref", "HEAD", &self.commit],
        };
        git(&clone, update, LOCAL_PATIENCE).await.map_err(local)?;
        if parts.skips_lfs {
            for (name, value) in SKIPS_LFS {
                git(&clone, ["config", name, value], LOCAL_PATIENCE)
                    .await
                    .map_err(local)?;
            }
        }
        let lfs = parts.lfs.to_vec();
        let (reader, writer) = tokio::io::duplex(PIPE_BYTES);
        let writer = SyncIoBridge::new(writer);
        tokio::task::spawn_blocking(move || {
            let mut tar = tar::Builder::new(writer);
            tar.mode(tar::HeaderMode::Deterministic);
            tar.follow_symlinks(false);
            // When the reader is gone or the disk fails, the stream ends without its end mark and the agent refuses it.
            let done = tar
                .append_dir_all(".", clone.join(".git"))
                .and_then(|()| append_objects(&mut tar, &lfs))
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

/// What else a clone has.
#[derive(Debug, Clone, Copy)]
pub struct CloneParts<'a> {
    /// The branch that it is on; a submodule is on none.
    pub branch: Option<&'a str>,
    /// What Git LFS keeps of it.
    pub lfs: &'a [LfsObject],
    /// Its git leaves pointers where files are in Git LFS.
    pub skips_lfs: bool,
}

/// As `git lfs install --local --skip-smudge` sets it: `git lfs pull` still works.
const SKIPS_LFS: [(&str, &str); 2] = [
    ("filter.lfs.smudge", "git-lfs smudge --skip -- %f"),
    ("filter.lfs.process", "git-lfs filter-process --skip"),
];

fn append_objects<W: std::io::Write>(tar: &mut tar::Builder<W>, objects: &[LfsObject]) -> std::io::Result<()> {
    for object in objects {
        tar.append_path_with_name(&object.file, &object.place)?;
    }
    Ok(())
}

/// A tar stream of what Git LFS keeps, for a git folder.
pub fn objects_as_tar(objects: Vec<LfsObject>) -> impl tokio::io::AsyncRead + Send + use<> {
    let (reader, writer) = tokio::io::duplex(PIPE_BYTES);
    let writer = SyncIoBridge::new(writer);
    tokio::task::spawn_blocking(move || {
        let mut tar = tar::Builder::new(writer);
        tar.mode(tar::HeaderMode::Deterministic);
        let done = append_objects(&mut tar, &objects)
            .and_then(|()| tar.into_inner())
            .and_then(|mut writer| writer.shutdown());
        if let Err(error) = done {
            tracing::debug!(%error, "the stream of what Git LFS keeps to a VM was broken off");
        }
    });
    reader
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
