//! Taking a VM and making it the task's own: it is resumed, answers, and gets the task's variables, branch and scripts. From the
//! transaction that claims it to the reply.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_api::claim::{AgentPaths, ClaimReply, ClaimSource, ClaimedRepo};
use hearth_api::ids::InstanceId;
use hearth_core::checkout::{Checkout, with_own_scripts};
use hearth_core::claim::{Cause, Take};
use hearth_core::redact::{Redacted, Redactor};
use hearth_core::scripts::Phase;
use hearth_core::state::InstanceState;
use hearth_core::time::millis;
use hearth_drivers::DriverError;
use hearth_guest::client::{AgentClient, AgentError};
use jiff::Timestamp;
use tokio::time::Instant;

use super::claim::{ClaimTask, Progress, Seen};
use super::reservation::UndoGuard;
use super::trace::Trace;
use super::update_checkout::FETCH_BUDGET;
use super::{ClaimError, Claims};
use crate::builds::scripts::run_at_claim;
use crate::repos::branches::Asked;
use crate::secrets::git_config::{self, Committer};
use crate::secrets::{env_file, redactors};
use crate::store::{InstanceRow, NewClaim, ProjectRow, StoreError, Taken, VariableOwner, VariableRow};
use crate::vms::connections::{ConnectError, RESTARTED};
use crate::vms::egress::NotHeld;

/// A ready VM has this long to be resumed and to answer when it is handed over; then the next one is tried. A healthy one takes
/// milliseconds, and a host where fifty are asked for at once half a second.
const ANSWER_BUDGET: Duration = Duration::from_secs(3);
/// It stays paused.
pub(super) const NOT_RESUMED: &str = "it did not resume in time";
/// It runs, and says nothing.
pub(super) const NO_ANSWER: &str = "its agent did not answer in time";
/// A task runs something in its VM at once: the refill waits this long, so that it does not take the processor from that.
const REFILL_PAUSE: Duration = Duration::from_millis(100);

/// Why an instance could not be made the task's own: what the guest or git said of it, as they said it. [`Unfit::retry_or_fail`] redacts it.
pub(super) enum Unfit {
    /// It does not answer as it should: the next one may.
    Instance(String),
    /// A script failed: it would fail in the next one too.
    Script(Redacted),
    /// The branch that was asked for cannot be checked out in it; perhaps it can in the next one.
    Stuck(String),
    /// The host does not have the commits that it needs.
    Host(String),
    /// The database.
    Store(StoreError),
}

impl From<StoreError> for Unfit {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<AgentError> for Unfit {
    fn from(error: AgentError) -> Self {
        Self::Instance(error.to_string())
    }
}

impl From<ConnectError> for Unfit {
    fn from(error: ConnectError) -> Self {
        Self::Instance(error.to_string())
    }
}

impl From<NotHeld> for Unfit {
    fn from(error: NotHeld) -> Self {
        match error {
            NotHeld::Store(error) => Self::Store(error),
            error @ NotHeld::Driver(_) => Self::Instance(error.to_string()),
        }
    }
}

impl From<DriverError> for Unfit {
    fn from(error: DriverError) -> Self {
        Self::Instance(error.to_string())
    }
}

impl Claims {
    /// Takes a VM and hands it over; `None` when there was none after all, or the one that was taken could not be used.
    #[tracing::instrument(name = "hand_over", skip_all, fields(instance))]
    pub(super) async fn take(
        &self,
        seen: &mut Seen<'_>,
        task: &ClaimTask,
        which: &Take,
        progress: &mut Progress,
    ) -> Result<Option<ClaimReply>, ClaimError> {
        progress.trace.begin_try();
        let Some((row, mut reply)) = self.take_instance(seen, task, which, progress).await? else {
            return Ok(None);
        };
        progress.trace.phase("take");
        tracing::Span::current().record("instance", row.id.as_str());
        let mut undo = UndoGuard::new(self, task.key.is_none().then(|| row.id.clone()));
        let store = &self.store;
        match self
            .hand_off(seen, task, progress.branch.as_ref(), &row, &mut progress.trace)
            .await
        {
            Ok(repos) => {
                reply.repos = repos;
                let (pool, target) = (seen.pool.as_ref(), &seen.target.recipe);
                self.set_ups.tell_stale(seen.project, pool, target, &mut reply).await?;
                if reply.stale {
                    progress.trace.phase("stale");
                }
                // Until here, and not until there was a VM: updating its checkouts is waited for as well.
                reply.wait_ms = millis(progress.trace.age());
                let hand_over = progress.trace.end(&task.order, reply.source, row.recipe == *target);
                store.end_hand_over(&row.project, &reply, &hand_over).await?;
                undo.disarm();
                progress.reservation.forget(&reply.id);
                tracing::info!(instance = %row.id, project = %row.project, source = reply.source.as_str(), "handed over");
                self.guest_requests.run_soon();
                self.refill_later();
                self.start_terminals(&row, &reply);
                Ok(Some(reply))
            }
            Err(unfit) => {
                store.undo_claim(&row.id, Timestamp::now()).await?;
                undo.disarm();
                progress.reservation.forget(&row.id);
                self.wake.wake();
                let redactor = self.redactor(&row, task).await?;
                unfit.retry_or_fail(&redactor, which, &row, progress)?;
                Ok(None)
            }
        }
    }

    /// The transaction: from here on the instance is claimed.
    async fn take_instance(
        &self,
        seen: &mut Seen<'_>,
        task: &ClaimTask,
        which: &Take,
        progress: &mut Progress,
    ) -> Result<Option<(InstanceRow, ClaimReply)>, StoreError> {
        let store = &self.store;
        let target = &seen.target.recipe;
        let (only, strict_recipe, source) = match which {
            Take::Unfinished(id) => {
                let row = store.instance(id).await?;
                let row = row.filter(|row| row.state == InstanceState::Claimed);
                return Ok(row.zip(seen.earlier.take().map(|earlier| earlier.reply)));
            }
            Take::Reserved { id, source } => (Some(id), task.order.strict.then_some(target.as_str()), *source),
            Take::Pool { only, source } => (None, only.as_deref(), *source),
        };
        let new = NewClaim {
            project: &seen.project.id,
            key: task.key.as_deref(),
            body_hash: &task.body_hash,
            asked: &task.asked,
            token: &task.token,
            owner: &task.user,
            strict_recipe,
            only,
            lease: task.lease,
        };
        let (now, waited) = (Timestamp::now(), progress.trace.age());
        let reply = |row: &InstanceRow, expires_at| first_reply(row, source, now, waited, expires_at);
        let taken = store.take_ready(&new, target, now, reply).await?;
        let (taken, counts) = match taken {
            // Another request of the key was faster: the claim checks again, and sees it.
            Taken::Before => return Ok(None),
            // Another claim was faster: the claim checks again, and is refused.
            Taken::Full => return Ok(None),
            Taken::Nothing(counts) => (None, counts),
            Taken::Instance(row, reply, counts) => (Some((*row, *reply)), counts),
        };
        if only.is_none() {
            progress.trace.note_ready(counts);
        }
        if taken.is_some()
            && let Some(ticket) = &progress.ticket
        {
            ticket.step_aside();
        }
        Ok(taken)
    }

    /// Makes the VM the task's own; where its checkouts are then.
    async fn hand_off(
        &self,
        seen: &Seen<'_>,
        task: &ClaimTask,
        branch: Option<&Asked>,
        row: &InstanceRow,
        trace: &mut Trace,
    ) -> Result<Vec<ClaimedRepo>, Unfit> {
        // While it is still paused: nothing of the task is in it yet.
        if self.egress.begin(&row.project, &row.vm).await? {
            trace.phase("egress");
        }
        let budget = Instant::now() + ANSWER_BUDGET;
        let agent = self.resume_and_connect(row, budget, trace).await?;
        let is_current = row.recipe == seen.target.recipe;
        let variables = self.task_variables(seen.project, task, is_current).await?;
        let identity = git_identity(seen.project, task, is_current);
        trace.phase("variables");
        let files = variables.as_deref().map(env_file::file).into_iter();
        let files = files.chain(identity.as_ref().map(git_config::file)).collect();
        // It sets the guest's clock too, so it is called without files as well.
        let prepared = tokio::time::timeout_at(budget, agent.hand_over(files)).await;
        prepared.map_err(|_| Unfit::Instance(NO_ANSWER.to_owned()))??;
        trace.phase("prepare");
        let left = task.order.patience.saturating_sub(trace.age());
        let patience = FETCH_BUDGET.max(left);
        let moving = self.update_checkouts(seen, task, branch, row, &agent, patience);
        let (repos, moved) = moving.await?;
        trace.phase("checkouts");
        self.run_scripts(seen, task, row, (&moved, &agent)).await?;
        trace.phase("scripts");
        Ok(repos)
    }

    /// The VM runs and its agent answers, in the boot that the VM was made in.
    #[tracing::instrument(name = "resume", skip_all)]
    async fn resume_and_connect(
        &self,
        row: &InstanceRow,
        budget: Instant,
        trace: &mut Trace,
    ) -> Result<AgentClient, Unfit> {
        let resumed = tokio::time::timeout_at(budget, self.pause.resume(&row.vm)).await;
        resumed.map_err(|_| Unfit::Instance(NOT_RESUMED.to_owned()))??;
        trace.phase("resume");
        let agents = &self.connections;
        let agent = agents.get(&row.vm, budget.duration_since(Instant::now())).await?;
        // Known from its set-up on, for as long as the connection lasts: a guest that restarts loses it.
        let boot = tokio::time::timeout_at(budget, agents.boot(&row.vm, &agent)).await;
        let boot = boot.map_err(|_| Unfit::Instance(NO_ANSWER.to_owned()))??;
        if row.boot_id.as_deref().is_some_and(|known| known != boot) {
            return Err(Unfit::Instance(RESTARTED.to_owned()));
        }
        trace.phase("connect");
        Ok(agent)
    }

    /// The scripts of the checkouts that moved, by their places, and those that a VM without live processes needs.
    #[tracing::instrument(name = "scripts", skip_all)]
    async fn run_scripts(
        &self,
        seen: &Seen<'_>,
        task: &ClaimTask,
        row: &InstanceRow,
        (moved, agent): (&[usize], &AgentClient),
    ) -> Result<(), Unfit> {
        let checkouts = with_own_scripts(&seen.target.checkouts, &row.settings);
        let all: Vec<&Checkout> = checkouts.iter().collect();
        let moved = moved.iter().filter_map(|at| checkouts.get(*at)).collect();
        let mut phases = vec![(Phase::UpdateAfterCheckout, moved)];
        if !self.driver.capabilities().live_processes {
            phases.push((Phase::Startup, all));
        }
        for (phase, checkouts) in phases {
            if checkouts
                .iter()
                .all(|checkout| checkout.scripts.script(phase).is_none())
            {
                continue;
            }
            let redactor = self.redactor(row, task).await?;
            run_at_claim(agent, phase, &checkouts, &redactor)
                .await
                .map_err(Unfit::Script)?;
        }
        Ok(())
    }

    /// Knows the values of everything that a task's VM may hold.
    pub(super) async fn redactor(&self, row: &InstanceRow, task: &ClaimTask) -> Result<Redactor, StoreError> {
        let mut all = self.store.variables(&row.project, VariableOwner::Shared).await?;
        let owner = VariableOwner::User(&task.user);
        all.extend(self.store.variables(&row.project, owner).await?);
        let own = task.env.iter().map(|(name, value)| (name.clone(), value.clone()));
        all.extend(own.map(|(name, value)| VariableRow { name, value }));
        // Git in it may ask for these.
        all.extend(redactors::of_credentials(&self.store, &row.project).await?);
        Ok(redactors::build(&all).await)
    }

    /// The variables of the task, weakest first replaced by stronger: shared, personal, the claim's own. `None` when they
    /// are just the shared ones, which a VM of the current recipe has.
    async fn task_variables(
        &self,
        project: &ProjectRow,
        task: &ClaimTask,
        is_current: bool,
    ) -> Result<Option<Vec<VariableRow>>, StoreError> {
        let owner = VariableOwner::User(&task.user);
        let personal = self.store.variables(&project.id, owner).await?;
        if is_current && personal.is_empty() && task.env.is_empty() {
            return Ok(None);
        }
        let shared = self.store.variables(&project.id, VariableOwner::Shared).await?;
        let pairs = shared.into_iter().chain(personal).map(|row| (row.name, row.value));
        let own = task.env.iter().map(|(name, value)| (name.clone(), value.clone()));
        let strongest: BTreeMap<String, String> = pairs.chain(own).collect();
        let rows = strongest.into_iter().map(|(name, value)| VariableRow { name, value });
        Ok(Some(rows.collect()))
    }

    /// An instance has gone to a task: the pool makes another one, but not this very moment.
    fn refill_later(&self) {
        let wake = self.wake.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REFILL_PAUSE).await;
            wake.wake();
        });
    }
}

impl Unfit {
    /// Where the next VM would be no better, the error of the claim. Else it is recorded why this one could not be used, and the claim takes
    /// another one.
    fn retry_or_fail(
        self,
        redactor: &Redactor,
        which: &Take,
        row: &InstanceRow,
        progress: &mut Progress,
    ) -> Result<(), ClaimError> {
        let (cause, reason) = match self {
            Self::Script(reason) => return Err(ClaimError::Script(reason)),
            Self::Host(reason) => return Err(ClaimError::Host(redactor.redact(&reason))),
            Self::Store(error) => return Err(error.into()),
            Self::Instance(reason) => (Cause::Host, reason),
            Self::Stuck(reason) => (Cause::Checkout, reason),
        };
        let reason = redactor.redact(&reason);
        tracing::warn!(instance = %row.id, %reason, "a VM was not fit for the claim that took it");
        progress.unfit += 1;
        progress.trace.skip(&row.id, &reason);
        if let Some(ticket) = &progress.ticket {
            ticket.step_back();
        }
        // One of the pool that does not answer says nothing about what is made for the claim.
        if cause == Cause::Checkout || matches!(which, Take::Reserved { .. }) {
            progress.fail(cause, reason.into());
        }
        Ok(())
    }
}

/// Who makes the commits in the task's VM; `None` when that is the project's own, which a VM of the current recipe has.
fn git_identity(project: &ProjectRow, task: &ClaimTask, is_current: bool) -> Option<Committer> {
    match (&task.git_identity, &project.git_identity) {
        (Some(identity), _) => Some(identity.into()),
        (None, Some(_)) if is_current => None,
        (None, Some(identity)) => Some(identity.into()),
        (None, None) => Some(git_config::of_user(&task.user)),
    }
}

/// The reply as it is known when the VM is taken: what a repeated key finds when the server is killed meanwhile.
fn first_reply(
    row: &InstanceRow,
    source: ClaimSource,
    now: Timestamp,
    waited: Duration,
    expires_at: Timestamp,
) -> ClaimReply {
    ClaimReply {
        id: row.id.clone(),
        instance_id: row.vm.clone(),
        source,
        recipe: row.recipe.clone(),
        age_ms: row.provisioned_at.map_or(0, |at| {
            u64::try_from(now.duration_since(at).as_millis()).unwrap_or_default()
        }),
        wait_ms: millis(waited),
        repos: row.repos.clone(),
        expires_at,
        stale: false,
        stale_since: None,
        stale_parts: Vec::new(),
        agent: agent_paths(&row.id),
    }
}

pub(super) fn agent_paths(id: &InstanceId) -> AgentPaths {
    let path = |what: &str| format!("/api/v1/instances/{id}/{what}");
    AgentPaths {
        exec: path("exec"),
        files: path("files"),
        terminal: path("terminal"),
        ports: path("ports"),
    }
}
