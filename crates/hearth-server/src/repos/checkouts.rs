//! The repositories of a project as they stand in its VMs: with their branch and their folder.

use std::collections::BTreeSet;

use hearth_core::checkout::Checkout;
use hearth_core::scripts::RepoScripts;

use crate::store::{PoolRow, ProjectRow};

/// The repositories with their branch and folder: `/home/<name>`, or `/home/<org>-<name>` when that is taken.
#[must_use]
pub fn checkouts(project: &ProjectRow, pool: Option<&PoolRow>) -> Vec<Checkout> {
    let branch = pool.and_then(|pool| pool.config.branch.as_deref());
    let mut taken = BTreeSet::new();
    project
        .repos
        .iter()
        .map(|repo| {
            let full = repo.repo_full_name.as_str();
            let (org, name) = full.rsplit_once('/').unwrap_or(("", full));
            let mut path = format!("/home/{name}");
            if !taken.insert(path.clone()) {
                path = format!("/home/{}-{name}", org.replace('/', "-"));
                taken.insert(path.clone());
            }
            Checkout {
                repo_full_name: full.to_owned(),
                url: repo.url.clone(),
                tenant: project.tenant.clone(),
                project: project.fetches_for(),
                branch: branch.unwrap_or(repo.branch.as_str()).to_owned(),
                path,
                lfs: repo.lfs,
                submodules: repo.submodules,
                scripts: project
                    .setup
                    .iter()
                    .flat_map(|setup| &setup.repositories)
                    .find(|setup| setup.repository == full)
                    .map(RepoScripts::from)
                    .unwrap_or_default(),
            }
        })
        .collect()
}
