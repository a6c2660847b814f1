//! Looks for hooks in the repositories' `.capy/settings.json`: what the setup object replaces.

use std::time::Duration;

use futures::future::join_all;

use super::heads::look_at_head;
use super::mirrors::Mirrors;
use super::settings;
use crate::store::ProjectRow;

/// How long a request waits for repositories to be fetched.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyFound {
    /// Repositories with hooks, in the project's order.
    pub repositories: Vec<String>,
    /// Whether every repository could be read.
    pub check_complete: bool,
}

/// Looks at the head of each repository's branch. `patience`: for a fetch.
pub async fn find_legacy_hooks(mirrors: &Mirrors, patience: Duration, project: &ProjectRow) -> LegacyFound {
    let looks = project.repos.iter().map(|repo| {
        let at = (repo.repo_full_name.as_str(), project.remote(repo), repo.branch.as_str());
        look_at_head(mirrors, at, patience, PATIENCE, async |head| {
            let found = settings::find(&head).await?;
            // A broken file says something too: provisioning fails with it.
            Ok(found.is_some_and(|(file, content)| {
                file == settings::LEGACY_FILE
                    && settings::read(file, &content).map_or(true, |settings| !settings.hooks.is_empty())
            }))
        })
    });
    let mut found = LegacyFound {
        repositories: Vec::new(),
        check_complete: true,
    };
    for (repo, look) in project.repos.iter().zip(join_all(looks).await) {
        match look {
            Some(Ok(true)) => found.repositories.push(repo.repo_full_name.to_string()),
            Some(Ok(false)) => {}
            _ => found.check_complete = false,
        }
    }
    found
}
