//! Looks for hooks in the repositories' `.capy/settings.json`: what the setup object replaces.

use std::time::Duration;

use futures::future::join_all;

use super::mirrors::{Freshness, MirrorError, Mirrors};
use super::settings;
use crate::store::ProjectRow;

/// How long a request waits for repositories to be fetched. A longer first fetch continues, and a later request sees its end.
const PATIENCE: Duration = Duration::from_secs(5);

/// a branch head that was fetched so long ago is good enough for a look.
const FRESH: Duration = Duration::from_secs(2);

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
        let mirrors = mirrors.clone();
        let (repo, remote) = (repo.clone(), project.remote(repo));
        // A task of its own: when the request has waited long enough, the fetch continues.
        let look = tokio::spawn(async move {
            let head = mirrors
                .fetch(
                    &repo.repo_full_name,
                    &remote,
                    &repo.branch,
                    patience,
                    Freshness::Fetched(FRESH),
                )
                .await?;
            let found = settings::find(&head).await?;
            // A broken file says something too: provisioning fails with it.
            Ok::<_, MirrorError>(found.is_some_and(|(file, content)| {
                file == settings::LEGACY_FILE
                    && settings::read(file, &content).map_or(true, |settings| !settings.hooks.is_empty())
            }))
        });
        tokio::time::timeout(PATIENCE, look)
    });
    let mut found = LegacyFound {
        repositories: Vec::new(),
        check_complete: true,
    };
    for (repo, look) in project.repos.iter().zip(join_all(looks).await) {
        match look {
            Ok(Ok(Ok(true))) => found.repositories.push(repo.repo_full_name.to_string()),
            Ok(Ok(Ok(false))) => {}
            _ => found.check_complete = false,
        }
    }
    found
}
