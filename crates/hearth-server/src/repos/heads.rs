//! A look at the newest commit of a branch for a request that does not wait for ever.

use std::time::Duration;

use hearth_core::checkout::Remote;

use super::git::GitError;
use super::mirrors::{Freshness, MirrorCommit, MirrorError, Mirrors};

/// A branch head that was fetched so long ago is good enough for a look.
const FRESH: Duration = Duration::from_secs(2);

/// Fetches a branch and looks at its head. `None` when that takes longer than `wait`: then it continues, and a later request sees its end.
/// `patience`: for the fetch.
pub async fn look_at_head<T, L>(
    mirrors: &Mirrors,
    (repo, remote, branch): (&str, Remote, &str),
    patience: Duration,
    wait: Duration,
    look: impl FnOnce(MirrorCommit) -> L + Send + 'static,
) -> Option<Result<T, MirrorError>>
where
    T: Send + 'static,
    L: Future<Output = Result<T, MirrorError>> + Send,
{
    let (mirrors, name, branch) = (mirrors.clone(), repo.to_owned(), branch.to_owned());
    let looking = tokio::spawn(async move {
        let head = mirrors.fetch(&name, &remote, &branch, patience, Freshness::Fetched(FRESH));
        look(head.await?).await
    });
    let looked = tokio::time::timeout(wait, looking).await.ok()?;
    Some(looked.unwrap_or_else(|error| {
        Err(MirrorError::Local {
            repo: repo.to_owned(),
            source: GitError::NotRun(std::io::Error::other(error)),
        })
    }))
}
