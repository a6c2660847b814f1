//! The loop of a claim: it observes, asks `hearth_core::claim` what to do next, and does that, until there is an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_api::claim::{ClaimReply, ClaimSource};
use hearth_api::ids::{InstanceId, TokenId};
use hearth_api::project::GitIdentity;
use hearth_core::claim::{
    Cause, ClaimOrder, ClaimScope, ClaimView, Earlier, Failure, Next, PoolView, Ready, Reserved, next,
};
use hearth_core::purpose::Purpose;
use hearth_core::state::{FailureKind, InstanceState};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::queue::Ticket;
use super::reservation::Reservation;
use super::trace::Trace;
use super::update_checkout::FETCH_BUDGET;
use super::{ClaimError, Claims};
use crate::builds::cause;
use crate::recipes::target::Target;
use crate::repos::branches::Asked;
use crate::repos::checkouts::checkouts;
use crate::store::{AskedFields, BranchHeads, ClaimRow, NewInstance, PoolRow, ProjectRow, StoreError};
use crate::templates::select::serving;

/// Each look into the database may take so much longer than the claim's longest wait; then the claim is refused because the server is
/// too busy. The caller must not wait for that any longer.
const LAST_CHECK: Duration = Duration::from_secs(5);

/// The fields of a claim that decide which VM it gets. The order matters: `http/claims.rs` hashes them one by one; the E2B door hashes its
/// whole body for each.
pub const FIELDS_OF_A_KEY: [&str; 5] = ["branch", "strict", "env", "gitIdentity", "ttlMinutes"];

/// What a claim asks for: a VM, and what it needs in it.
#[derive(Clone)]
pub struct ClaimTask {
    /// When the request came.
    pub came: Instant,
    /// How it wants its VM.
    pub order: ClaimOrder,
    /// Idempotency key.
    pub key: Option<String>,
    /// Hash of the request's body.
    pub body_hash: String,
    /// What each field said that decides which VM it is.
    pub asked: AskedFields,
    /// The token that claims.
    pub token: TokenId,
    /// Whose token it is: this user's personal variables go into the VM.
    pub user: String,
    /// Branch to check out.
    pub branch: Option<String>,
    /// Length of the lease.
    pub lease: SignedDuration,
    /// Variables of the task.
    pub env: BTreeMap<String, String>,
    /// Who makes the commits, where the claim says it.
    pub git_identity: Option<GitIdentity>,
}

/// A claim on its way.
pub(super) struct Progress {
    /// Where the branch is that it asks for.
    pub branch: Option<Asked>,
    /// Its ticket in the queue.
    pub ticket: Option<Ticket>,
    /// What is reserved for it.
    pub reservation: Reservation,
    /// How the last VM that was ordered for it is made.
    pub ordered: Option<ClaimSource>,
    /// It has ordered a VM or joined the queue.
    pub has_waited: bool,
    /// How many VMs it took that were not fit.
    pub unfit: usize,
    /// What was to be its VM and could not be.
    pub failures: Vec<Failure>,
    /// What it was offered and where its time went.
    pub trace: Trace,
}

/// What a claim sees.
pub(super) struct Seen<'a> {
    pub project: &'a ProjectRow,
    pub pool: Option<PoolRow>,
    /// What the pool is to follow.
    pub target: Target,
    /// Where its branches were last seen.
    pub heads: BranchHeads,
    /// The claim that used the key before.
    pub earlier: Option<ClaimRow>,
    /// All that it decides by.
    pub view: ClaimView,
}

impl ClaimTask {
    /// Whether the claim that used the key before asked for the same VM. How long one waits is no part of that.
    fn is_same_as(&self, before: &ClaimRow) -> bool {
        match &before.asked {
            Some(_) => before.token == self.token && self.differs_from(before).is_empty(),
            // It was made by a version that kept one hash of all.
            None => before.body_hash == self.body_hash,
        }
    }

    /// The fields that say something else than they did; none when another token asks, whose hashes say nothing.
    pub(super) fn differs_from(&self, before: &ClaimRow) -> Vec<&'static str> {
        let Some(asked) = before.asked.as_ref().filter(|_| before.token == self.token) else {
            return Vec::new();
        };
        let differs = |field: &&&'static str| asked.get(**field) != self.asked.get(**field);
        FIELDS_OF_A_KEY.iter().filter(differs).copied().collect()
    }
}

impl Progress {
    pub(super) fn fail(&mut self, cause: Cause, reason: String) {
        let at = self.trace.age();
        self.failures.push(Failure { at, cause, reason });
    }

    /// Until something changes, or until then. `next` says so only to a claim with a ticket: it has it join first.
    async fn wait(&self, until: Duration) {
        if let Some(ticket) = &self.ticket {
            let left = until.saturating_sub(self.trace.age());
            // At the end of its time it checks once more.
            let _ = tokio::time::timeout(left, ticket.notified()).await;
        }
    }
}

/// Does this work for a claim of that age; `None` when it is not done within the claim's longest wait and [`LAST_CHECK`].
async fn in_time<T>(age: Duration, order: &ClaimOrder, work: impl Future<Output = T>) -> Option<T> {
    let left = order.longest_wait().saturating_sub(age);
    tokio::time::timeout(left + LAST_CHECK, work).await.ok()
}

impl Claims {
    /// Hands a VM over.
    #[tracing::instrument(skip_all, fields(project = %project.id))]
    pub async fn claim(&self, project: &ProjectRow, task: &ClaimTask) -> Result<ClaimReply, ClaimError> {
        let trace = Trace::begin(task.came);
        // Two requests with one key: the second sees the finished hand-over of the first.
        let _alone = match &task.key {
            Some(key) => {
                let lock = self.keys.lock((project.id.clone(), key.clone()));
                let alone = in_time(trace.age(), &task.order, lock).await;
                Some(alone.ok_or_else(ClaimError::still_answered)?)
            }
            None => None,
        };
        let mut progress = Progress {
            branch: self.find_branch(project, task).await?,
            ticket: None,
            reservation: Reservation::new(self, &project.id, task.order.scope() != ClaimScope::Own),
            ordered: None,
            has_waited: false,
            unfit: 0,
            failures: Vec::new(),
            trace,
        };
        loop {
            let observed = in_time(
                progress.trace.age(),
                &task.order,
                self.observe(project, task, &mut progress),
            )
            .await;
            let mut seen = observed.ok_or_else(ClaimError::too_busy)??;
            let step = next(&seen.view, &task.order, progress.trace.age());
            progress.trace.note_view(&seen.view, &task.order, &step);
            match step {
                Next::Repeat => {
                    if let Some(earlier) = seen.earlier.take() {
                        return Ok(earlier.reply);
                    }
                }
                Next::Take(which) => {
                    if let Some(reply) = self.take(&mut seen, task, &which, &mut progress).await? {
                        return Ok(reply);
                    }
                }
                Next::GiveBack(id) => {
                    self.store.unreserve_instance(&id).await?;
                    progress.reservation.forget(&id);
                    self.changed(&project.id, &id);
                }
                Next::Make { how, recipe } => self.make(project, &mut progress, how, recipe).await?,
                Next::Join => {
                    let own = progress.reservation.ids().first().cloned();
                    let (scope, inbox) = (task.order.scope(), progress.reservation.inbox());
                    progress.ticket = Some(self.queues.join(&project.id, scope, own, inbox));
                    progress.has_waited = true;
                }
                Next::Wait { until } => progress.wait(until).instrument(tracing::info_span!("wait")).await,
                Next::Refuse(why) => {
                    let why = tokio::time::timeout(LAST_CHECK, self.refusal(&seen, task, &progress, why)).await;
                    return Err(why.map_err(|_| ClaimError::too_busy())??);
                }
            }
        }
    }

    /// Looks for the branch that is asked for, before anything is taken. A claim that was answered before is answered the same,
    /// whatever became of the branch.
    async fn find_branch(&self, project: &ProjectRow, task: &ClaimTask) -> Result<Option<Asked>, ClaimError> {
        let Some(branch) = &task.branch else { return Ok(None) };
        let store = &self.store;
        if let Some(key) = &task.key
            && store
                .claim_of(&project.id, key)
                .await?
                .is_some_and(|claim| claim.handed_over)
        {
            return Ok(None);
        }
        let pool = store.pool(&project.id).await?;
        let checkouts = checkouts(project, pool.as_ref());
        let patience = FETCH_BUDGET.max(task.order.patience);
        Ok(Some(Asked::find(&self.mirrors, &checkouts, branch, patience).await?))
    }

    /// What there is now.
    async fn observe<'a>(
        &self,
        project: &'a ProjectRow,
        task: &ClaimTask,
        progress: &mut Progress,
    ) -> Result<Seen<'a>, StoreError> {
        let store = &self.store;
        let pool = async {
            let pool = store.pool(&project.id).await?;
            let heads = store.branch_heads_of(project).await?;
            let target = self.recipes.target(project, pool.as_ref(), &heads).await;
            Ok::<_, StoreError>((pool, target, heads))
        };
        let earlier = async {
            match &task.key {
                Some(key) => store.claim_of(&project.id, key).await,
                None => Ok(None),
            }
        };
        let ((pool, target, heads), earlier, held, of_token, templates, ready) = tokio::try_join!(
            pool,
            earlier,
            store.claims_held(&project.id),
            store.token_claims_held(&task.token),
            store.templates_of(&project.id),
            store.ready_by_recipe(&project.id)
        )?;
        let recipe = target.recipe.clone();
        let of_target = ready.iter().filter(|(of, _)| *of == recipe);
        let view = ClaimView {
            earlier: match &earlier {
                Some(earlier) => Some(self.earlier(task, earlier).await?),
                None => None,
            },
            // Where the token has no room, that is what the claim is told.
            held: of_token.filter(|held| !held.has_room_for(1)).or(held),
            queue: match &progress.ticket {
                Some(ticket) => ticket.inside(),
                None => self.queues.outside(&project.id, task.order.scope()),
            },
            reserved: self.reserved(progress).await?,
            ordered: progress.ordered,
            has_waited: progress.has_waited,
            unfit: progress.unfit,
            failures: progress.failures.clone(),
            pool: PoolView {
                enabled: pool.as_ref().is_some_and(|pool| pool.config.enabled),
                template: serving(&templates, project, &recipe).map(|template| template.recipe.clone()),
                ready: Ready {
                    any: ready.iter().map(|(_, count)| count).sum(),
                    target: of_target.map(|(_, count)| count).sum(),
                },
                needs_repair: self.blockers.needs_repair(&project.id, &recipe),
                target: recipe,
            },
        };
        Ok(Seen {
            project,
            pool,
            target,
            heads,
            earlier,
            view,
        })
    }

    async fn earlier(&self, task: &ClaimTask, earlier: &ClaimRow) -> Result<Earlier, StoreError> {
        Ok(if !task.is_same_as(earlier) {
            Earlier::OtherRequest
        } else if earlier.ended_at.is_some() {
            Earlier::Ended
        } else if earlier.handed_over {
            Earlier::Answered
        } else {
            // The server was killed, or the request went away, before the VM was the task's own.
            let id = &earlier.reply.id;
            let row = self.store.instance(id).await?;
            match row.filter(|row| row.state == InstanceState::Claimed) {
                // It may be about to answer there.
                Some(row) if row.server != self.store.server() => return Err(StoreError::NotAtHome),
                Some(_) => Earlier::Unfinished(id.clone()),
                None => Earlier::Ended,
            }
        })
    }

    /// What is reserved for the claim; what is gone is noted as a failure.
    async fn reserved(&self, progress: &mut Progress) -> Result<Vec<Reserved>, StoreError> {
        let mut reserved = Vec::new();
        for id in progress.reservation.ids() {
            let row = self.store.instance(&id).await?;
            match row {
                Some(row) if matches!(row.state, InstanceState::Provisioning | InstanceState::Ready) => {
                    let ready = row.state == InstanceState::Ready;
                    let recipe = row.recipe;
                    reserved.push(Reserved { id, recipe, ready });
                }
                row => {
                    progress.reservation.forget(&id);
                    let Some(row) = row else { continue };
                    let blames_recipe = row.failure_kind.is_some_and(FailureKind::blames_recipe);
                    let cause = if blames_recipe { Cause::SetUp } else { Cause::Host };
                    if let Some(reason) = self.store.failure_of(&row).await? {
                        progress.fail(cause, reason);
                    }
                }
            }
        }
        Ok(reserved)
    }

    /// Orders a VM for the claim: writes its row, and the pools' loop begins to make it.
    async fn make(
        &self,
        project: &ProjectRow,
        progress: &mut Progress,
        how: ClaimSource,
        recipe: String,
    ) -> Result<(), StoreError> {
        let id = InstanceId::generate();
        // Reserved before the row is written: if this future is dropped at any point, the row is given back.
        progress.reservation.add(id.clone());
        if let Some(ticket) = &progress.ticket {
            ticket.owns(&id);
        }
        (progress.ordered, progress.has_waited) = (Some(how), true);
        let shape = self.recipes.shape(project);
        let new = NewInstance {
            id,
            purpose: Purpose::Claim,
            ..NewInstance::new(
                &project.id,
                recipe,
                u64::from(shape.memory_mib),
                "a claim waits, and nothing is ready for it",
            )
        };
        // The boot's trace continues this request's.
        cause::note(&new.id);
        self.store.insert_instance(&new, Timestamp::now()).await?;
        self.wake.wake();
        Ok(())
    }
}
