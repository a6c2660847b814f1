//! One poll of one repository: `git ls-remote` for all branches that are followed, and what is done about those that moved.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hearth_core::checkout::Remote;
use jiff::Timestamp;
use rand::RngExt as _;

use super::Watch;
use super::schedule::Order;
use crate::repos::git::GitError;
use crate::repos::mirrors::{Freshness, MirrorError};
use crate::repos::remote_branches;
use crate::repos::sources::{Refusal, SourceError, Sources, credential_advice};
use crate::store::StoreError;

/// How long a repository may take to say where its branches are.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a repository could not be polled.
#[derive(Debug, thiserror::Error)]
enum PollError {
    /// It does not say where its branches are.
    #[error("{url} cannot be reached; {advice}. Git says: {source}")]
    Reach {
        /// Where it is.
        url: String,
        /// What to poll.
        advice: String,
        /// Git's words.
        source: GitError,
    },
    /// It may not be polled for its tenant.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It does, and its commits cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] MirrorError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Tells the schedule that a poll has ended, however it did.
struct Polling {
    watch: Watch,
    remote: Remote,
    has_failed: bool,
}

impl Drop for Polling {
    fn drop(&mut self) {
        let luck = rand::rng().random();
        self.watch
            .schedule()
            .ended(&self.remote, self.has_failed, Instant::now(), luck);
        self.watch.0.polled.notify_waiters();
    }
}

impl Watch {
    /// Looks, and notes what cannot be followed.
    pub(super) async fn poll(self, order: Order) {
        self.0.polls.fetch_add(1, Ordering::Relaxed);
        let faults = self.0.faults.clone();
        let mut polling = Polling {
            watch: self.clone(),
            remote: order.remote.clone(),
            has_failed: true,
        };
        match self.check_remote(&order).await {
            Ok(found) => {
                faults.end(&order.remote, None);
                // Nothing of what is wanted is there: that is worth the longer pauses of a failure.
                polling.has_failed = !found;
            }
            Err(PollError::Store(error)) => {
                tracing::error!(%error, url = order.remote.url, "what a repository said could not be noted; it is asked again");
            }
            Err(error) => faults.note(&order.remote, None, &error.to_string(), Timestamp::now()),
        }
    }

    /// Whether any of the branches is there.
    async fn check_remote(&self, order: &Order) -> Result<bool, PollError> {
        let (remote, branches) = (&order.remote, order.subscription.branches());
        let sources = self.0.mirrors.sources();
        let heads = remote_heads(sources, remote, &branches).await?;
        let known = self.store().branch_heads_at(std::slice::from_ref(remote)).await?;
        let (mut found, mut moved) = (false, false);
        for branch in branches {
            let is_there = match heads.get(branch) {
                None => false,
                Some(commit) if known.commit(remote, branch) == Some(commit) => true,
                Some(_) => match self.take(order, branch).await {
                    Ok(news) => {
                        moved |= news;
                        true
                    }
                    // It went between the poll and the fetch.
                    Err(PollError::Fetch(MirrorError::NoBranch { .. })) => false,
                    Err(error) => {
                        self.wake_if(moved);
                        return Err(error);
                    }
                },
            };
            found |= is_there;
            if is_there {
                self.0.faults.end(remote, Some(branch));
            } else {
                let (name, url) = (order.subscription.name(), &remote.url);
                let message = format!("{name} has no branch `{branch}` ({url}); push it, or choose another branch");
                self.0.faults.note(remote, Some(branch), &message, Timestamp::now());
            }
        }
        self.wake_if(moved);
        Ok(found)
    }

    fn wake_if(&self, moved: bool) {
        if moved {
            self.0.wake.wake();
        }
    }

    /// Fetches a branch that moved, then notes its head; whether it was news.
    async fn take(&self, order: &Order, branch: &str) -> Result<bool, PollError> {
        let (remote, patience) = (&order.remote, self.0.fetch_timeout);
        let fetch = self
            .0
            .mirrors
            .fetch(order.subscription.name(), remote, branch, patience, Freshness::Newest);
        // Not the commit that the poll saw: it may have moved again, and this one is on the host.
        let commit = fetch.await?.commit;
        let is_news = self
            .store()
            .note_branch_head(remote, branch, &commit, Timestamp::now())
            .await?;
        if is_news {
            tracing::info!(url = remote.url, branch, commit, "a branch is at a new commit");
        }
        Ok(is_news)
    }
}

/// The commits of these branches; of those alone, since a repository may have very many.
async fn remote_heads(
    sources: &Sources,
    remote: &Remote,
    branches: &BTreeSet<&str>,
) -> Result<HashMap<String, String>, PollError> {
    let grant = sources.admit(remote)?;
    let names: Vec<_> = branches.iter().map(|branch| format!("refs/heads/{branch}")).collect();
    let heads = remote_branches::heads(sources, &grant, &names, PATIENCE).await;
    let heads = heads.map_err(|error| match error {
        SourceError::Refused(refusal) => PollError::Refused(refusal),
        SourceError::Git(source) => PollError::Reach {
            url: remote.url.clone(),
            advice: grant.advice(),
            source,
        },
        SourceError::WithCredential { host, source } => PollError::Reach {
            url: remote.url.clone(),
            advice: credential_advice(&host),
            source,
        },
    })?;
    Ok(heads.into_iter().map(|head| (head.branch, head.commit)).collect())
}
