//! Why a claim gets no VM, as an error with its message.

use std::time::Duration;

use hearth_api::counted::count;
use hearth_api::explain::SkippedInstance;
use hearth_core::claim::{ClaimOrder, ClaimScope, ClaimView, Ready, Refusal};
use hearth_core::plain_text::clause;
use hearth_core::progress::span;
use hearth_core::redact::Redacted;
use jiff::Timestamp;

use super::Claims;
use super::claim::{ClaimTask, Progress, Seen};
use super::handoff::{NO_ANSWER, NOT_RESUMED};
use crate::repos::branches::BranchError;
use crate::store::{Store, StoreError};

/// What a client is told to wait before it asks again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// So many VMs that could not be used are named.
const NAMED: usize = 3;

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
    /// The project's claims hold as many VMs as they may.
    #[error("{reason}")]
    TooManyHeld {
        /// For a person: how many, and who holds them.
        reason: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The key's VM is gone.
    #[error("the VM of this task id was released or its lease ended; use a new task id")]
    Ended,
    /// The instance that was made for this claim failed.
    #[error("the VM that was made for this claim failed: {reason}")]
    Failed {
        reason: String,
        /// The project's set-up fails: trying again changes nothing.
        blames_recipe: bool,
    },
    /// A script of the setup object failed in the VM while it was handed over.
    #[error("{}; the VM was deleted; fix the script or claim another branch", clause(.0))]
    Script(Redacted),
    /// The branch is not there, or could not be looked up.
    #[error("{0}; nothing was handed over")]
    Branch(Box<BranchError>),
    /// In no VM could the branch be checked out that was asked for.
    #[error("{}; nothing was handed over", clause(.0))]
    Stuck(String),
    /// The host does not have the commits that the VM needs.
    #[error("{}; nothing was handed over, try again", clause(.0))]
    Host(Redacted),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<BranchError> for ClaimError {
    fn from(error: BranchError) -> Self {
        Self::Branch(Box::new(error))
    }
}

impl ClaimError {
    /// How things are is not known: the host is too busy to say.
    pub(super) fn too_busy() -> Self {
        Self::NothingReady {
            reason: "the claim's time is up, and whether a VM is ready is not known: the server's machine is too busy to look; ask again \
                     later"
                .to_owned(),
            retry_after: RETRY_AFTER,
        }
    }

    /// An earlier request of the same key has no answer yet.
    pub(super) fn still_answered() -> Self {
        Self::NothingReady {
            reason: "an earlier claim of this task id is still on its way, and gets the VM; ask again".to_owned(),
            retry_after: RETRY_AFTER,
        }
    }
}

/// Such as `` (`branch` and `env` differ)``; nothing when no field can be named.
fn differing(fields: &[&'static str]) -> String {
    let named: Vec<String> = fields.iter().map(|field| format!("`{field}`")).collect();
    match named.as_slice() {
        [] => String::new(),
        [one] => format!(" ({one} differs)"),
        [first @ .., last] => format!(" ({} and {last} differ)", first.join(", ")),
    }
}

/// What the pool has and the claim does not get.
fn what_is_ready(view: &ClaimView, order: &ClaimOrder) -> String {
    let Ready { any, target } = view.pool.ready;
    let are = |number: usize| {
        format!(
            "{} {} ready",
            count(number, "VM"),
            if number == 1 { "is" } else { "are" }
        )
    };
    match order.scope() {
        ClaimScope::Target if target > 0 => format!("{}, for claims that came before", are(target)),
        ClaimScope::Target if any > 0 => format!("{}, none of the newest set-up, and the claim is strict", are(any)),
        ClaimScope::Any if any > 0 => format!("{}, for claims that came before", are(any)),
        ClaimScope::Any | ClaimScope::Target | ClaimScope::Own => "no VM is ready".to_owned(),
    }
}

/// What was taken for the claim and removed again, and why.
fn not_fit(skipped: &[SkippedInstance]) -> String {
    if skipped.is_empty() {
        return String::new();
    }
    let named = skipped
        .iter()
        .take(NAMED)
        .map(|vm| format!("{} ({})", vm.id, clause(&vm.reason)));
    let named: Vec<_> = named.collect();
    let more = match skipped.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let is_slow = |vm: &SkippedInstance| vm.reason == NO_ANSWER || vm.reason == NOT_RESUMED;
    let cause = if skipped.iter().any(is_slow) {
        "; VMs that do not answer in time are mostly due to a host that has too much to do"
    } else {
        ""
    };
    let count = count(skipped.len(), "VM");
    format!(
        "; {count} that the claim took could not be used: {}{more}{cause}",
        named.join(", ")
    )
}

impl Claims {
    /// A refusal, with its message.
    pub(super) async fn refusal(
        &self,
        seen: &Seen<'_>,
        task: &ClaimTask,
        progress: &Progress,
        refusal: Refusal,
    ) -> Result<ClaimError, StoreError> {
        Ok(match refusal {
            Refusal::OtherRequest => ClaimError::OtherBody(
                seen.earlier
                    .as_ref()
                    .map_or_else(Vec::new, |earlier| task.differs_from(earlier)),
            ),
            Refusal::Ended => ClaimError::Ended,
            Refusal::TooManyHeld => self.too_many_held(seen, task).await?,
            Refusal::SetUpFailed(reason) => ClaimError::Failed {
                reason,
                blames_recipe: true,
            },
            Refusal::VmFailed(reason) => ClaimError::Failed {
                reason: match progress.trace.skipped() {
                    [] => reason,
                    [only] if only.reason == reason => reason,
                    more => format!("{}{}", clause(&reason), not_fit(more)),
                },
                blames_recipe: false,
            },
            Refusal::Stuck(reason) => ClaimError::Stuck(reason),
            Refusal::Disabled | Refusal::NothingReady => {
                return self.nothing_ready(seen, task, progress, refusal).await;
            }
        })
    }

    async fn too_many_held(&self, seen: &Seen<'_>, task: &ClaimTask) -> Result<ClaimError, StoreError> {
        let of_token = self.store.token_claims_held(&task.token).await?;
        if let Some(held) = of_token.filter(|held| !held.has_room_for(1)) {
            return Ok(ClaimError::TooManyHeld {
                reason: format!(
                    "this token's claims hold {}, and may hold no more than {} at once (`maxVms` of the token): release one (`hearth claims` lists \
                     them), or ask an admin for a token that may hold more",
                    count(usize::try_from(held.now).unwrap_or(usize::MAX), "VM"),
                    held.most
                ),
                retry_after: RETRY_AFTER,
            });
        }
        let holders = self.store.claim_holders(&seen.project.id).await?;
        let most = seen.view.held.map_or(0, |held| held.most);
        let named = holders.iter().take(NAMED).map(|holder| {
            let owner = holder.owner.as_deref().unwrap_or("somebody");
            format!("{} ({owner}, lease until {:.0})", holder.id, holder.expires_at)
        });
        let named: Vec<_> = named.collect();
        let more = match holders.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let reason = format!(
            "the project's claims hold {}, and may hold no more than {most} (`maxClaims`): {}{more}; release one (`hearth release ID`), wait until a lease \
             ends, or allow more (`hearth project set {} --max-claims NUMBER`)",
            count(holders.len(), "VM"),
            named.join(", "),
            seen.project.id
        );
        Ok(ClaimError::TooManyHeld {
            reason,
            retry_after: RETRY_AFTER,
        })
    }

    async fn nothing_ready(
        &self,
        seen: &Seen<'_>,
        task: &ClaimTask,
        progress: &Progress,
        refusal: Refusal,
    ) -> Result<ClaimError, StoreError> {
        let what = what_is_ready(&seen.view, &task.order);
        let not_fit = not_fit(progress.trace.skipped());
        let now = Timestamp::now();
        let since = Store::failed_window(now);
        let status = self.store.pool_status(&seen.project.id, since).await?;
        let mut retry_after = RETRY_AFTER;
        let reason = if let Some(blocker) = self.blockers.blocker(seen.project).await? {
            // What is being made already may be ready sooner.
            if let Some(until) = blocker.until.filter(|_| status.provisioning == 0) {
                retry_after = retry_after.max(Duration::try_from(until.duration_since(now)).unwrap_or_default());
            }
            format!("{what}: {}{not_fit}", clause(&blocker.message))
        } else if refusal == Refusal::Disabled {
            return Ok(ClaimError::Disabled);
        } else {
            let (making, failed) = (status.provisioning, status.failed);
            let target = &seen.view.pool.target;
            let set_up = self.blockers.being_set_up(&seen.project.id, target).await?;
            let set_up = set_up
                .map(|at| format!("; of the newest set-up: {at}"))
                .unwrap_or_default();
            let advice = match task.order.patience {
                Duration::ZERO => "ask again, or claim with a wait".to_owned(),
                waited => format!("ask again, or wait longer than {}", span(waited)),
            };
            format!("{what} ({making} being made, {failed} failed in 24 h){set_up}{not_fit}; {advice}")
        };
        Ok(ClaimError::NothingReady { reason, retry_after })
    }
}
