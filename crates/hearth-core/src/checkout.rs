//! A repository's checkout in a VM: where it comes from and goes, and how the set-up left it.

use hearth_api::claim::{ClaimedRepo, ClonedFrom};
use hearth_api::ids::ProjectId;
use hearth_api::instance::RepoSettings;
use serde::{Deserialize, Serialize};

use crate::scripts::RepoScripts;

/// A repository's address, and on whose behalf it is fetched: what one tenant, or a project with its own credentials, may read, another
/// may not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Remote {
    /// Whose project it is.
    pub tenant: String,
    /// The project, where it has git credentials of its own.
    pub project: Option<ProjectId>,
    /// Where it is fetched from.
    pub url: String,
}

/// What is fetched of a repository besides its own objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extras {
    /// What Git LFS keeps.
    pub lfs: bool,
    /// Submodules.
    pub submodules: bool,
}

/// One repository and where it goes.
#[derive(Debug, Clone)]
pub struct Checkout {
    /// `org/name`.
    pub repo_full_name: String,
    /// Where the host fetches it from and what `origin` says.
    pub url: String,
    /// On whose behalf it is fetched.
    pub tenant: String,
    /// The project, where it has git credentials of its own.
    pub project: Option<ProjectId>,
    /// The branch to check out.
    pub branch: String,
    /// The folder in the VM.
    pub path: String,
    /// Whether what Git LFS keeps of it comes along.
    pub lfs: bool,
    /// Whether its submodules come along.
    pub submodules: bool,
    /// What the setup object runs in it.
    pub scripts: RepoScripts,
}

impl Checkout {
    /// Where it is fetched from, and on whose behalf.
    #[must_use]
    pub fn remote(&self) -> Remote {
        Remote {
            tenant: self.tenant.clone(),
            project: self.project.clone(),
            url: self.url.clone(),
        }
    }

    /// What comes along with its commits.
    #[must_use]
    pub fn extras(&self) -> Extras {
        Extras {
            lfs: self.lfs,
            submodules: self.submodules,
        }
    }
}

/// The checkouts with the scripts that the repositories' own settings files say.
#[must_use]
pub fn with_own_scripts(checkouts: &[Checkout], settings: &[RepoSettings]) -> Vec<Checkout> {
    let mut all = checkouts.to_vec();
    for checkout in &mut all {
        let own = settings
            .iter()
            .find(|own| own.repo_full_name == checkout.repo_full_name);
        if let Some(own) = own {
            checkout.scripts.adopt(&own.settings.hooks);
        }
    }
    all
}

/// What the set-up left of a checkout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckoutState {
    /// What is checked out; `None` when git did not say.
    pub commit: Option<String>,
    /// The branch, or `(detached)`.
    pub branch: Option<String>,
    /// There is no repository any more.
    pub gone: bool,
}

impl CheckoutState {
    /// There is no repository any more.
    #[must_use]
    pub fn gone() -> Self {
        Self {
            gone: true,
            ..Self::default()
        }
    }

    /// Says of a checkout that was made at its branch's commit where it is now.
    pub fn apply(&self, repo: &mut ClaimedRepo) {
        repo.gone = self.gone;
        let (Some(commit), Some(branch)) = (&self.commit, &self.branch) else {
            return;
        };
        if (commit, branch) == (&repo.commit, &repo.branch) {
            return;
        }
        let from = ClonedFrom {
            branch: std::mem::replace(&mut repo.branch, branch.clone()),
            commit: std::mem::replace(&mut repo.commit, commit.clone()),
        };
        repo.cloned = Some(from);
    }
}
