//! Why a claim gets no VM, as an error with its message.

use std::time::Duration;

use hearth_core::claim::Refusal;
use hearth_core::plain_text::clause;
use jiff::Timestamp;

use super::Claims;
use super::claim::{ClaimTask, Seen};
use crate::repos::branches::BranchError;
use crate::store::{Store, StoreError};

/// What a client is told to wait before it asks again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Nothing is ready.
    #[error("{reason}")]
    NothingReady {
        /// For a person: what the pool is doing.
        reason: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Nothing is ready, and nothing is being made.
    #[error(
        "no VM is ready and the pool is disabled, so asking again alone does not help: enable it, or claim with a wait (`waitMs`) \
         and without `miss: require` to have one made"
    )]
    Disabled,
    /// The key was used for something else.
    #[error("this task id was used before for another claim{}; use a new one, or ask for the same", differing(.0))]
    OtherBody(Vec<&'static str>),
    /// The key's VM is gone.
    #[error("the VM of this task id was released or its lease ended; use a new task id")]
    Ended,
    /// The instance that was made for this claim failed.
    #[error("the VM that was made for this claim failed: {reason}")]
    Failed {
        /// What happened.
        reason: String,
        /// The project's set-up fails: trying again changes nothing.
        blames_recipe: bool,
    },
    /// A script of the setup object failed in the VM while it was handed over.
    #[error("{}; the VM was thrown away, mend the script or claim another branch", clause(.0))]
    Script(String),
    /// The branch is not there, or could not be looked up.
    #[error("{0}; nothing was handed over")]
    Branch(Box<BranchError>),
    /// In no VM could the branch be checked out that was asked for.
    #[error("{}; nothing was handed over", clause(.0))]
    Stuck(String),
    /// The host does not have the commits that the VM needs.
    #[error("{}; nothing was handed over, try again", clause(.0))]
    Host(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<BranchError> for ClaimError {
    fn from(error: BranchError) -> Self {
        Self::Branch(Box::new(error))
    }
}

/// `; `branch` and `env` differ`.
fn differing(fields: &[&'static str]) -> String {
    let named: Vec<String> = fields.iter().map(|field| format!("`{field}`")).collect();
    match named.as_slice() {
        [] => String::new(),
        [one] => format!(" ({one} differs)"),
        [first @ .., last] => format!(" ({} and {last} differ)", first.join(", ")),
    }
}

impl Claims {
    /// A refusal, with its message.
    pub(super) async fn refusal(
        &self,
        seen: &Seen<'_>,
        task: &ClaimTask,
        refusal: Refusal,
    ) -> Result<ClaimError, StoreError> {
        Ok(match refusal {
            Refusal::OtherRequest => ClaimError::OtherBody(
                seen.earlier
                    .as_ref()
                    .map_or_else(Vec::new, |earlier| task.differs_from(earlier)),
            ),
            Refusal::Ended => ClaimError::Ended,
            Refusal::SetUpFailed(reason) => ClaimError::Failed {
                reason,
                blames_recipe: true,
            },
            Refusal::VmFailed(reason) => ClaimError::Failed {
                reason,
                blames_recipe: false,
            },
            Refusal::Stuck(reason) => ClaimError::Stuck(reason),
            Refusal::Disabled | Refusal::NothingReady => return self.nothing_ready(seen, refusal).await,
        })
    }

    async fn nothing_ready(&self, seen: &Seen<'_>, refusal: Refusal) -> Result<ClaimError, StoreError> {
        let now = Timestamp::now();
        let since = Store::failed_window(now);
        let status = self.store.pool_status(&seen.project.id, since).await?;
        let mut retry_after = RETRY_AFTER;
        let reason = if let Some(blocker) = self.blockers.blocker(seen.project).await? {
            // What is being made already may be ready sooner.
            if let Some(until) = blocker.until.filter(|_| status.provisioning == 0) {
                retry_after = retry_after.max(Duration::try_from(until.duration_since(now)).unwrap_or_default());
            }
            format!("no VM is ready: {}", blocker.sentence)
        } else if refusal == Refusal::Disabled {
            return Ok(ClaimError::Disabled);
        } else {
            format!(
                "no VM is ready ({} being made, {} failed in 24 h); ask again, or claim with a wait",
                status.provisioning, status.failed
            )
        };
        Ok(ClaimError::NothingReady { reason, retry_after })
    }
}
