//! Garbage collection of mirrors: removes those of repositories that no project names any more. A submodule's mirror is kept as long as
//! that of a repository it was seen in, so a file in it says which ones those are.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::checkouts::checkouts;
use super::mirrors::{Mirrors, SCRATCH_PREFIX};
use crate::store::{Store, StoreError};

/// How often it is looked.
const ROUND: Duration = Duration::from_secs(10 * 60);
/// While somebody still works with a mirror that is to go, the next round begins so soon, and later each time.
const IN_USE_AGAIN: Duration = Duration::from_secs(1);
/// How a mirror's folder ends.
const MIRROR: &str = ".git";
/// In a mirror: a file for each mirror whose commits name this one's as a submodule.
const PARENTS: &str = "hearth-parents";

/// Looks after mirrors. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MirrorGc {
    store: Store,
    mirrors: Mirrors,
    /// A round is to begin at once.
    soon: Arc<Notify>,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the folder of the mirrors cannot be used: {0}")]
    Folder(#[from] io::Error),
}

impl MirrorGc {
    /// Removes nothing until [`MirrorGc::run`].
    #[must_use]
    pub fn new(store: Store, mirrors: Mirrors) -> Self {
        let soon = Arc::default();
        Self { store, mirrors, soon }
    }

    /// A project is gone, or has other repositories.
    pub fn run_soon(&self) {
        self.soon.notify_one();
    }

    /// Rounds until the server stops.
    pub async fn run(&self, stop: CancellationToken) {
        let mut again = IN_USE_AGAIN;
        loop {
            let in_use = self.round().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "mirrors that no project names could not be removed; the next round tries again");
                0
            });
            let pause = if in_use > 0 { again } else { ROUND };
            again = if in_use > 0 { again * 2 } else { IN_USE_AGAIN }.min(ROUND);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.soon.notified() => again = IN_USE_AGAIN,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Gives how many mirrors stay only because somebody works with them.
    async fn round(&self) -> Result<usize, RoundError> {
        let Self { store, mirrors, .. } = self;
        // First the folders, then the projects: a project is written before anything is fetched for it.
        let there = mirrors.listed().await?;
        if there.is_empty() {
            return Ok(0);
        }
        let projects = store.all_projects().await?;
        // A branch head is recorded only when the mirror has its commit.
        store.forget_branch_heads().await?;
        let remotes = projects.iter().flat_map(|project| checkouts(project, None));
        let named: HashSet<String> = remotes
            .filter_map(|checkout| mirrors.name_of(&checkout.remote()))
            .collect();
        let kept = mirrors.with_submodules(named, &there).await;
        let mut in_use = 0;
        for name in there.iter().filter(|name| !kept.contains(*name)) {
            if !mirrors.remove(name).await? {
                in_use += 1;
            }
        }
        Ok(in_use)
    }
}

impl Mirrors {
    /// What each mirror's folder is called.
    async fn listed(&self) -> io::Result<Vec<String>> {
        let mut listed = Vec::new();
        let mut entries = match tokio::fs::read_dir(self.folder()).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listed),
            entries => entries?,
        };
        while let Some(entry) = entries.next_entry().await? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(MIRROR) && !name.starts_with(SCRATCH_PREFIX) {
                listed.push(name);
            }
        }
        Ok(listed)
    }

    /// The folder of what is fetched from there; `None` where nothing is.
    fn name_of(&self, remote: &hearth_core::checkout::Remote) -> Option<String> {
        let (_, mirror) = self.folder_of(&self.sources().admit(remote).ok()?);
        Some(mirror.file_name()?.to_string_lossy().into_owned())
    }

    /// Notes that a commit of the one names a commit of the other as its submodule.
    pub(super) async fn note_parent(&self, submodule: &Path, parent: &Path) {
        let Some(name) = parent.file_name() else { return };
        let folder = submodule.join(PARENTS);
        let note = async {
            tokio::fs::create_dir_all(&folder).await?;
            tokio::fs::write(folder.join(name), "").await
        };
        if let Err(error) = note.await {
            // Then it is removed some day and fetched again.
            tracing::warn!(%error, mirror = %submodule.display(), "which repository a submodule belongs to could not be noted");
        }
    }

    /// These mirrors, and those of their submodules.
    async fn with_submodules(&self, mut kept: HashSet<String>, there: &[String]) -> HashSet<String> {
        let mut open = Vec::new();
        for name in there {
            let mut parents = Vec::new();
            if let Ok(mut entries) = tokio::fs::read_dir(self.folder().join(name).join(PARENTS)).await {
                while let Ok(Some(entry)) = entries.next_entry().await {
                    parents.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
            open.push((name, parents));
        }
        loop {
            let before = kept.len();
            for (name, parents) in &open {
                if parents.iter().any(|parent| kept.contains(parent)) {
                    kept.insert((*name).clone());
                }
            }
            if kept.len() == before {
                return kept;
            }
        }
    }

    /// Removes a mirror; false when somebody works with it.
    async fn remove(&self, name: &str) -> io::Result<bool> {
        let mirror = self.folder().join(name);
        // What is only remembered uses nothing.
        self.forget(&mirror);
        let aside = self.folder().join(format!("{SCRATCH_PREFIX}removed-{name}"));
        if aside.exists() {
            tokio::fs::remove_dir_all(&aside).await?;
        }
        if !self.uses.unless_used(&mirror, || std::fs::rename(&mirror, &aside))? {
            return Ok(false);
        }
        tokio::fs::remove_dir_all(&aside).await?;
        tracing::info!(
            mirror = name,
            "removed the mirror of a repository that no project names any more"
        );
        Ok(true)
    }
}
