//! A VM becomes a task's own: it goes on, answers, and gets the task's variables, branch and scripts.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_api::claim::ClaimedRepo;
use hearth_api::project::GitIdentity;
use hearth_core::checkout::Checkout;
use hearth_core::scripts::Phase;
use hearth_guest::client::{AgentClient, AgentError};
use tokio::time::Instant;

use super::trace::Trace;
use super::{ClaimOrder, Reconciler};
use crate::provision::blueprint::Wish;
use crate::provision::branches::Asked;
use crate::provision::checkout::CheckoutError;
use crate::provision::envfile;
use crate::provision::forward::{Move, MoveError};
use crate::provision::gitconfig;
use crate::provision::mask_cache;
use crate::provision::scripts::run_at_claim;
use crate::store::{InstanceRow, ProjectRow, StoreError, VariableOwner, VariableRow};

/// A ready VM has this long to go on and to answer when it is handed over; then the next one is tried. A healthy one takes
/// milliseconds, and a host where fifty are asked for at once half a second.
const ANSWER_BUDGET: Duration = Duration::from_secs(3);
/// The host may fetch a branch for so long while a claim waits, or as long as the claim itself would wait.
pub(super) const FETCH_BUDGET: Duration = Duration::from_secs(5);

/// Why an instance could not be made the task's own.
pub(super) enum Unfit {
    /// It does not answer as it should: the next one may.
    Instance(String),
    /// A script failed: it would fail in the next one too.
    Script(String),
    /// It cannot be brought to the branch that was asked for; perhaps the next one can.
    Stuck(String),
    /// The host does not have what would be brought into it.
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

/// Who makes the commits in the task's VM; `None` when that is the project's own, which a VM of the current recipe has.
fn git_identity(project: &ProjectRow, order: &ClaimOrder, is_current: bool) -> Option<GitIdentity> {
    match (&order.git_identity, &project.git_identity) {
        (Some(identity), _) => Some(identity.clone()),
        (None, Some(_)) if is_current => None,
        (None, Some(identity)) => Some(identity.clone()),
        (None, None) => Some(gitconfig::of_user(&order.user)),
    }
}

impl Reconciler {
    /// Makes the VM the task's own.
    pub(super) async fn activate(
        &self,
        project: &ProjectRow,
        wish: &Wish,
        order: &ClaimOrder,
        asked: Option<&Asked>,
        row: &InstanceRow,
        trace: &mut Trace,
    ) -> Result<Vec<ClaimedRepo>, Unfit> {
        let budget = Instant::now() + ANSWER_BUDGET;
        let resumed = tokio::time::timeout_at(budget, self.resume(&row.vm)).await;
        resumed
            .map_err(|_| Unfit::Instance("it did not go on in time".to_owned()))?
            .map_err(|error| Unfit::Instance(error.to_string()))?;
        trace.lap("resume");
        let agent = self
            .context
            .agents
            .get(&row.vm, budget.duration_since(Instant::now()))
            .await
            .map_err(|error| Unfit::Instance(error.to_string()))?;
        // Known from its set-up on, for as long as the connection lasts: a guest that restarts loses it.
        let boot = tokio::time::timeout_at(budget, self.context.agents.boot(&row.vm, &agent)).await;
        let boot = boot.map_err(|_| Unfit::Instance("its agent did not answer in time".to_owned()))??;
        if row.boot_id.as_deref().is_some_and(|known| known != boot) {
            return Err(Unfit::Instance(super::health::RESTARTED.to_owned()));
        }
        trace.lap("connect");
        let variables = self.task_variables(project, order, row.recipe == wish.recipe).await?;
        let identity = git_identity(project, order, row.recipe == wish.recipe);
        trace.lap("variables");
        let files = variables.as_deref().map(envfile::file).into_iter();
        let files = files.chain(identity.as_ref().map(gitconfig::file)).collect();
        let prepared = tokio::time::timeout_at(budget, agent.hand_over(files)).await;
        prepared.map_err(|_| Unfit::Instance("its agent did not answer in time".to_owned()))??;
        trace.lap("prepare");
        let checkouts = &wish.checkouts;
        let (repos, moved) = self.move_checkouts(wish, order, asked, row, &agent).await?;
        trace.lap("checkouts");
        let all: Vec<&Checkout> = checkouts.iter().collect();
        let moved = moved.into_iter().filter_map(|at| checkouts.get(at)).collect();
        let mut phases = vec![(Phase::UpdateAfterCheckout, moved)];
        if !self.context.driver.capabilities().live_processes {
            phases.push((Phase::Startup, all));
        }
        for (phase, checkouts) in phases {
            if checkouts
                .iter()
                .all(|checkout| checkout.scripts.script(phase).is_none())
            {
                continue;
            }
            let variables = match &variables {
                Some(variables) => variables.clone(),
                None => self.shared_variables(project).await?,
            };
            let masker = mask_cache::build(&variables).await;
            run_at_claim(&agent, phase, &checkouts, &masker)
                .await
                .map_err(Unfit::Script)?;
        }
        trace.lap("scripts");
        Ok(repos)
    }

    /// Brings every checkout to where its branch is now, or to the claim's branch where it has that. Where they are then, and the
    /// places of those whose script `updateAfterCheckout` has something to do. A claim never gets another branch than it asked for
    /// without being told: a checkout that cannot be brought to it makes the VM unfit. One that only stays behind is said to.
    async fn move_checkouts(
        &self,
        wish: &Wish,
        order: &ClaimOrder,
        asked: Option<&Asked>,
        row: &InstanceRow,
        agent: &AgentClient,
    ) -> Result<(Vec<ClaimedRepo>, Vec<usize>), Unfit> {
        let Wish { checkouts, tips, .. } = wish;
        let (mut repos, mut updates) = (row.repos.clone(), Vec::new());
        for (at, checkout) in checkouts.iter().enumerate() {
            let name = &checkout.repo_full_name;
            let own = asked.and_then(|asked| Some((asked.branch.as_str(), asked.commit(checkout)?)));
            let Some(repo) = repos.iter_mut().find(|repo| repo.path == checkout.path) else {
                match own {
                    Some((branch, _)) => {
                        return Err(Unfit::Stuck(format!(
                            "{name} has the branch `{branch}`, but the VM was set up before {name} was one of the project's repositories; \
                         claim with `strict` to wait for one that has it"
                        )));
                    }
                    None => continue,
                }
            };
            repo.branch_missing = order.branch.is_some() && own.is_none();
            let followed = || {
                Some((
                    checkout.branch.as_str(),
                    tips.commit(&checkout.remote(), &checkout.branch)?,
                ))
            };
            let Some((branch, commit)) = own.or_else(followed) else {
                continue;
            };
            if repo.cloned() == (branch, commit) {
                continue;
            }
            if own.is_none() && repo.cloned.is_some() {
                repo.behind = true;
                repo.why = Some(
                    "its set-up checked something else out; `strict` waits until that has run on what is new"
                        .to_owned(),
                );
                continue;
            }
            let from = repo.clone();
            let settings = row.settings.iter().find(|read| read.repo_full_name == *name);
            let step = Move {
                checkout,
                from: &from,
                branch,
                commit,
                settings,
                worked_in: row.worked_in,
            };
            let patience = FETCH_BUDGET.max(order.patience);
            match step.carry_out(&self.context.mirrors, agent, patience).await {
                Ok(Some(moved)) => {
                    (repo.branch, repo.commit, repo.cloned) = (branch.to_owned(), moved.commit, None);
                    // Another branch is another task: whatever its files say.
                    if moved.needs_update || order.branch.is_some() {
                        updates.push(at);
                    }
                }
                Ok(None) => {}
                Err(MoveError::Checkout(CheckoutError::Agent(error))) => return Err(error.into()),
                Err(error) if own.is_some() => {
                    let sentence = format!("{name} cannot be brought to the branch `{branch}`: {error}");
                    return Err(match error {
                        MoveError::Checkout(_) => Unfit::Stuck(sentence),
                        MoveError::Mirror(_) | MoveError::Diff(_) => Unfit::Host(sentence),
                    });
                }
                // The VM is good all the same: the reply says that the repository stays behind, and why.
                Err(error) => {
                    tracing::warn!(instance = %row.id, repo = name, branch, %error, "a checkout stays behind");
                    (repo.behind, repo.why) = (true, Some(error.to_string()));
                }
            }
        }
        Ok((repos, updates))
    }

    async fn shared_variables(&self, project: &ProjectRow) -> Result<Vec<VariableRow>, StoreError> {
        let store = &self.context.store;
        store.variables(&project.id, VariableOwner::Shared).await
    }

    /// The variables of the task, weakest first replaced by stronger: shared, personal, the claim's own. `None` when they
    /// are just the shared ones, which a VM of the current recipe has.
    async fn task_variables(
        &self,
        project: &ProjectRow,
        order: &ClaimOrder,
        is_current: bool,
    ) -> Result<Option<Vec<VariableRow>>, StoreError> {
        let owner = VariableOwner::User(&order.user);
        let personal = self.context.store.variables(&project.id, owner).await?;
        if is_current && personal.is_empty() && order.env.is_empty() {
            return Ok(None);
        }
        let shared = self.shared_variables(project).await?;
        let pairs = shared.into_iter().chain(personal).map(|row| (row.name, row.value));
        let own = order.env.iter().map(|(name, value)| (name.clone(), value.clone()));
        let strongest: BTreeMap<String, String> = pairs.chain(own).collect();
        let rows = strongest.into_iter().map(|(name, value)| VariableRow { name, value });
        Ok(Some(rows.collect()))
    }
}
