//! What Git LFS keeps of a commit: found by the host's git-lfs, fetched into the mirror's own store, named by SHA-256.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_core::checkout::Remote;

use super::git::{GitError, git};
use super::mirrors::{LOCAL_PATIENCE, MirrorCommit, MirrorError, Mirrors};
use super::submodules::is_fetchable;

/// Digits of an object's name.
const ID_DIGITS: usize = 64;

/// Each try waits twice as long as the one before; with the eight that are usual a place that is closed costs a minute.
const RETRIES: &str = "lfs.transfer.maxretries=3";

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LfsObject {
    /// Its place below a git folder, in the mirror as in a VM.
    pub place: String,
    /// Where it is on the host.
    pub file: PathBuf,
    /// The file of the repository that it is the content of; the first one by name, where several are the same.
    pub path: String,
}

impl LfsObject {
    fn new(mirror: &Path, id: &str, path: &str) -> Self {
        let place = format!("lfs/objects/{}/{}/{id}", &id[..2], &id[2..4]);
        let file = mirror.join(&place);
        let path = path.to_owned();
        Self { place, file, path }
    }
}

impl Mirrors {
    /// Whether a commit has files in Git LFS, and if that is wanted, what it keeps of them, fetched.
    pub async fn lfs_of(
        &self,
        head: &MirrorCommit,
        remote: &Remote,
        freshness: bool,
        patience: Duration,
    ) -> Result<(bool, Vec<LfsObject>), MirrorError> {
        let local = |source| MirrorError::Local {
            repo: head.repo().to_owned(),
            source,
        };
        let uses_lfs = uses_lfs(head).await.map_err(local)?;
        if !uses_lfs || !freshness {
            return Ok((uses_lfs, Vec::new()));
        }
        let mirror = head.mirror();
        match git(mirror, ["lfs", "version"], LOCAL_PATIENCE).await {
            Err(GitError::Failed { .. }) => {
                return Err(MirrorError::NoLfs {
                    repo: head.repo().to_owned(),
                });
            }
            other => drop(other.map_err(local)?),
        }
        let objects = objects(head).await.map_err(local)?;
        if objects.iter().all(|object| object.file.is_file()) {
            return Ok((true, objects));
        }
        let url = &remote.url;
        let endpoint = endpoint(head, url).await.map_err(local)?;
        let refused = |why| MirrorError::LfsRefused {
            repo: head.repo().to_owned(),
            url: endpoint.clone(),
            why,
        };
        if !is_fetchable(&endpoint) {
            return Err(refused(
                "its address must be https://, http://, ssh://, file:/// or user@host:path",
            ));
        }
        // Said here, because git-lfs would read another commit's `.lfsconfig` otherwise.
        let setting = format!("lfs.url={endpoint}");
        let settings = ["-c", &setting, "-c", RETRIES];
        let command = [&settings[..], &["lfs", "fetch", "--include=", "--exclude="]].concat();
        let address = if endpoint == default_endpoint(url) {
            url
        } else {
            &endpoint
        };
        let address = Remote {
            tenant: remote.tenant.clone(),
            project: remote.project.clone(),
            url: address.clone(),
        };
        let grant = self.admit(head.repo(), &address)?;
        if !grant.takes_lfs() {
            return Err(refused(
                "Git LFS over SSH is for the first tenant, and whom a `--source` rule lends `credentials=server` for the place; use an \
                 https:// address",
            ));
        }
        let commit = [head.commit.clone()];
        let fetched = self.sources().git(&grant, mirror, &command, &commit, patience).await;
        let missing = objects.iter().filter(|object| !object.file.is_file());
        let missing = files(missing.map(|object| object.path.as_str()));
        fetched.map_err(|source| MirrorError::Lfs {
            repo: head.repo().to_owned(),
            url: endpoint.clone(),
            missing: missing.clone().unwrap_or_default(),
            source,
        })?;
        match missing {
            None => Ok((true, objects)),
            Some(missing) => Err(MirrorError::NoLfsObject {
                repo: head.repo().to_owned(),
                missing,
                url: endpoint,
            }),
        }
    }
}

/// Whether any of the commit's `.gitattributes` hands files to Git LFS. Git alone tells: git-lfs need not be there.
async fn uses_lfs(head: &MirrorCommit) -> Result<bool, GitError> {
    let options = ["grep", "--quiet", "--fixed-strings", "filter=lfs", &head.commit, "--"];
    let words = options.into_iter().chain([":(glob)**/.gitattributes"]);
    match git(head.mirror(), words, LOCAL_PATIENCE).await {
        Ok(_) => Ok(true),
        Err(GitError::Failed { status, .. }) if status.code() == Some(1) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn objects(head: &MirrorCommit) -> Result<Vec<LfsObject>, GitError> {
    let said = git(
        head.mirror(),
        ["lfs", "ls-files", "--long", &head.commit],
        LOCAL_PATIENCE,
    )
    .await?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    // `ID * PATH`, or `ID - PATH` of one that is not in the working tree.
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let is_id = |id: &str| id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut objects: Vec<_> = lines
        .filter(|(id, _)| is_id(id))
        .map(|(id, rest)| LfsObject::new(head.mirror(), id, rest.split_once(' ').map_or(rest, |(_, path)| path)))
        .collect();
    objects.sort_by(|one, other| (&one.place, &one.path).cmp(&(&other.place, &other.path)));
    objects.dedup_by(|one, other| one.place == other.place);
    Ok(objects)
}

/// The first of some files, and how many there are besides; `None` of none.
fn files<'a>(mut paths: impl Iterator<Item = &'a str>) -> Option<Box<str>> {
    let first = paths.next()?;
    let named = match paths.count() {
        0 => format!("`{first}`"),
        more => format!("`{first}` and {more} more"),
    };
    Some(named.into_boxed_str())
}

/// Where the commit says that its objects are, else where Git LFS looks for those of a repository at this URL.
async fn endpoint(head: &MirrorCommit, url: &str) -> Result<String, GitError> {
    let blob = format!("{}:.lfsconfig", head.commit);
    let asks = ["config", "--blob", &blob, "--get", "lfs.url"];
    match git(head.mirror(), asks, LOCAL_PATIENCE).await {
        Ok(said) => {
            let own = String::from_utf8_lossy(&said.stdout).trim().to_owned();
            Ok(if own.is_empty() { default_endpoint(url) } else { own })
        }
        // No such file, or it does not say it.
        Err(GitError::Failed { .. }) => Ok(default_endpoint(url)),
        Err(error) => Err(error),
    }
}

/// Of `https://h/r.git` it is `https://h/r.git/info/lfs`; other schemes have no such path.
fn default_endpoint(url: &str) -> String {
    if !(url.starts_with("https://") || url.starts_with("http://")) {
        return url.to_owned();
    }
    let url = url.trim_end_matches('/');
    let ending = if url.ends_with(".git") { "" } else { ".git" };
    format!("{url}{ending}/info/lfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_looked_for_where_git_lfs_does() {
        for (url, endpoint) in [
            ("https://h/a/b", "https://h/a/b.git/info/lfs"),
            ("https://h/a/b.git/", "https://h/a/b.git/info/lfs"),
            ("file:///srv/b", "file:///srv/b"),
            ("ssh://git@h/b.git", "ssh://git@h/b.git"),
            ("git@h:a/b.git", "git@h:a/b.git"),
        ] {
            assert_eq!(default_endpoint(url), endpoint);
        }
    }
}
