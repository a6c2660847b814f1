//! What comes along with a commit: what Git LFS keeps of it, and its submodules, theirs included. All of it is fetched into the
//! host's mirrors, so that a VM needs neither network nor credentials. This module finds and fetches; [`transfer`](super::transfer) puts it
//! into VMs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_core::checkout::{Extras, Remote};

use super::git::GitError;
use super::lfs::LfsObject;
use super::mirrors::{MirrorCommit, MirrorError, Mirrors};
use super::submodules;

/// Submodules of submodules of … are followed so deep. No real repository needs more, and a repository may hold itself.
const MAX_DEPTH: usize = 10;
/// So many are brought at most.
const MAX_SUBMODULES: usize = 1000;

/// Everything that comes along with one commit of one repository.
#[derive(Debug, Default)]
pub struct ExtraContent {
    /// The commit's files are in Git LFS, whether or not they are to be fetched.
    pub uses_lfs: bool,
    /// What Git LFS keeps of it.
    pub lfs: Vec<LfsObject>,
    /// Submodules, each after the one that it is in.
    pub submodules: Vec<Submodule>,
    /// What was left out on the way, for a person.
    pub notes: Vec<String>,
}

/// One submodule at the commit that its parent names.
#[derive(Debug)]
pub struct Submodule {
    /// Its place below the top repository's checkout.
    pub path: String,
    /// The place of what it is in, and its own place below that.
    pub within: (String, String),
    /// Its git folder, below the top repository's `.git`.
    pub folder: String,
    /// Where it comes from; its `origin`.
    pub url: String,
    /// Its commit.
    pub head: MirrorCommit,
    /// Its files are in Git LFS.
    pub uses_lfs: bool,
    /// What Git LFS keeps of it.
    pub lfs: Vec<LfsObject>,
}

/// A repository whose submodules are still to be found.
struct Open {
    label: String,
    path: String,
    folder: String,
    remote: Remote,
    head: MirrorCommit,
    depth: usize,
}

impl ExtraContent {
    /// Whether there is nothing to bring.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lfs.is_empty() && self.submodules.is_empty()
    }

    /// Whether a submodule comes from this mirror.
    pub(super) fn lies_in(&self, mirror: &Path) -> bool {
        self.submodules
            .iter()
            .any(|submodule| submodule.head.mirror() == mirror)
    }
}

impl Mirrors {
    /// Finds everything that comes along with a commit, and fetches what the host does not have yet.
    pub async fn extra_content(
        &self,
        head: &MirrorCommit,
        remote: &Remote,
        extras: Extras,
        patience: Duration,
    ) -> Result<Arc<ExtraContent>, MirrorError> {
        let key = (head.mirror().to_owned(), head.commit.clone(), extras);
        // Of several that need the same, one fetches it.
        let one = format!("along {}", head.commit);
        let _alone = self.alone_at(head.repo(), one, patience).await?;
        if let Some(known) = self.cached_extra_content(&key) {
            return Ok(known);
        }
        let mut extra_content = ExtraContent::default();
        (extra_content.uses_lfs, extra_content.lfs) = self.lfs_of(head, remote, extras.lfs, patience).await?;
        if extras.submodules {
            let top = Open {
                label: head.repo().to_owned(),
                path: String::new(),
                folder: String::new(),
                remote: remote.clone(),
                head: head.clone(),
                depth: 0,
            };
            self.find_submodules(top, &mut extra_content, extras, patience).await?;
        }
        let extra_content = Arc::new(extra_content);
        self.cache_extra_content(key, extra_content.clone());
        Ok(extra_content)
    }

    async fn find_submodules(
        &self,
        top: Open,
        extra_content: &mut ExtraContent,
        extras: Extras,
        patience: Duration,
    ) -> Result<(), MirrorError> {
        let mut open = std::collections::VecDeque::from([top]);
        while let Some(parent) = open.pop_front() {
            let (listed, notes) = submodules::list(&parent.head, &parent.label).await?;
            extra_content.notes.extend(notes);
            for entry in listed {
                let label = format!("the submodule `{}` at {} of {}", entry.name, entry.path, parent.label);
                let refused = |why: &str| MirrorError::Submodule {
                    repo: label.clone(),
                    url: entry.url.clone(),
                    why: why.to_owned(),
                };
                if parent.depth == MAX_DEPTH || extra_content.submodules.len() == MAX_SUBMODULES {
                    return Err(refused("there are too many of them, or too deep in each other"));
                }
                let url = submodules::resolve(&parent.remote.url, &entry.url).map_err(|why| refused(&why))?;
                let remote = Remote {
                    tenant: parent.remote.tenant.clone(),
                    project: parent.remote.project.clone(),
                    url: url.clone(),
                };
                let head = self.fetch_commit(&label, &remote, &entry.commit, patience).await?;
                self.note_parent(head.mirror(), parent.head.mirror()).await;
                let (uses_lfs, lfs) = self.lfs_of(&head, &remote, extras.lfs, patience).await?;
                let below = |parent: &str, own: &str| {
                    if parent.is_empty() {
                        own.to_owned()
                    } else {
                        format!("{parent}/{own}")
                    }
                };
                let path = below(&parent.path, &entry.path);
                let folder = below(&parent.folder, &format!("modules/{}", entry.name));
                open.push_back(Open {
                    label,
                    path: path.clone(),
                    folder: folder.clone(),
                    remote,
                    head: head.clone(),
                    depth: parent.depth + 1,
                });
                extra_content.submodules.push(Submodule {
                    path,
                    within: (parent.path.clone(), entry.path),
                    folder,
                    url,
                    head,
                    uses_lfs,
                    lfs,
                });
            }
        }
        Ok(())
    }

    /// A commit that need be on no branch.
    async fn fetch_commit(
        &self,
        repo: &str,
        remote: &Remote,
        commit: &str,
        patience: Duration,
    ) -> Result<MirrorCommit, MirrorError> {
        let (grant, url) = (self.admit(repo, remote)?, remote.url.as_str());
        let (name, mirror) = self.folder_of(&grant);
        let mirror = self.uses.begin(mirror);
        let _one_at_a_time = self.alone_at(repo, name, patience).await?;
        let head = || MirrorCommit::new(mirror.clone(), repo, commit.to_owned(), String::new());
        if super::mirrors::has_commit(&mirror, commit).await {
            return Ok(head());
        }
        self.fetch_heads(repo, &grant, url, patience, &mirror).await?;
        if super::mirrors::has_commit(&mirror, commit).await {
            return Ok(head());
        }
        // Some hosts give out commits that are on no branch; a reference keeps what they gave.
        let refspec = [format!("+{commit}:refs/hearth/{commit}")];
        let fetched = self
            .fetch_refs(repo, (&grant, url), &["--no-tags"], &refspec, patience, &mirror)
            .await;
        match fetched {
            Ok(_) if super::mirrors::has_commit(&mirror, commit).await => Ok(head()),
            Ok(_)
            | Err(MirrorError::Fetch {
                source: GitError::Failed { .. },
                ..
            }) => Err(MirrorError::NoCommit {
                repo: repo.to_owned(),
                commit: commit.to_owned(),
                url: url.to_owned(),
            }),
            Err(error) => Err(error),
        }
    }
}

/// A commit in a mirror, and what is to be fetched of it.
pub type ExtraContentKey = (PathBuf, String, Extras);
