//! The hand-over of one instance to one task: a transaction, a look whether the VM answers, its task's variables and branch,
//! and the scripts that a moved checkout or lost processes ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_api::agent::client::{AgentClient, AgentError};
use hearth_api::claim::{AgentPaths, ClaimReply, ClaimSource, ClaimedRepo, Miss};
use hearth_api::ids::{InstanceId, TokenId};
use hearth_core::state::{FailureKind, InstanceState};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::trace::Trace;
use super::{Order, Reconciler};
use crate::provision::blueprint::{Checkout, Wish};
use crate::provision::envfile;
use crate::provision::forward::{Move, MoveError};
use crate::provision::scripts::{Phase, run_at_claim};
use crate::provision::{mask_cache, serving};
use crate::store::{InstanceRow, Moved, NewClaim, ProjectRow, StoreError, Taken, VariableOwner, VariableRow};

/// A ready VM has this long to go on and to answer when it is handed over; then the next one is tried. A healthy one takes
/// milliseconds, and a host where fifty are asked for at once half a second.
const ANSWER_BUDGET: Duration = Duration::from_secs(3);
/// The host may fetch a branch for so long while a claim waits, or as long as the claim itself would wait.
const FETCH_BUDGET: Duration = Duration::from_secs(5);
/// A claim that finds a template and no ready VM waits this long for a fork of it, however impatient it is.
const FORK_BUDGET: Duration = Duration::from_secs(20);
/// Whoever gets a VM runs something in it at once: the refill does not take the processor from that.
const REFILL_PAUSE: Duration = Duration::from_millis(100);
/// What a client is told to wait before it asks again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What a task asks for.
#[derive(Clone)]
pub struct ClaimOrder {
    /// Idempotency key.
    pub key: Option<String>,
    /// Hash of the request's body.
    pub body_hash: String,
    /// The token that claims.
    pub token: TokenId,
    /// Whose token it is: this user's personal variables go into the VM.
    pub user: String,
    /// Branch to check out.
    pub branch: Option<String>,
    /// Never an older recipe.
    pub strict: bool,
    /// What to do when nothing is ready.
    pub miss: Miss,
    /// How long to wait for what is not ready.
    pub patience: Duration,
    /// Length of the lease.
    pub lease: SignedDuration,
    /// Variables of the task.
    pub env: BTreeMap<String, String>,
}

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
    /// The key was used for something else.
    #[error("this task id was used before for another claim; use a new one")]
    OtherBody,
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
    #[error("{0}; the VM was thrown away, mend the script or claim another branch")]
    Script(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an instance could not be made the task's own.
enum Unfit {
    /// It does not answer as it should: the next one may.
    Instance(String),
    /// A script failed: it would fail in the next one too.
    Script(String),
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

/// Gives a reserved instance back when the claim that waited for it is gone.
struct Reservation {
    reconciler: Reconciler,
    id: Option<InstanceId>,
    /// Back to the pool, or away with it.
    pooled: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let (reconciler, pooled) = (self.reconciler.clone(), self.pooled);
        tokio::spawn(async move {
            let store = &reconciler.context.store;
            let done = if pooled {
                store.unreserve_instance(&id).await
            } else {
                reconciler.throw_away(&id).await
            };
            if let Err(error) = done {
                tracing::warn!(%error, instance = %id, "an instance whose claim is gone could not be given back");
            }
            reconciler.wake();
        });
    }
}

/// Takes a claim back that has no key, when its request is gone before the VM was handed over: nobody can ask for it again.
struct Unasked {
    reconciler: Reconciler,
    id: Option<InstanceId>,
}

impl Drop for Unasked {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let reconciler = self.reconciler.clone();
        tokio::spawn(async move {
            if let Err(error) = reconciler.context.store.undo_claim(&id, Timestamp::now()).await {
                tracing::warn!(%error, instance = %id, "a claim whose request is gone could not be taken back");
            }
            reconciler.changed();
        });
    }
}

impl Reconciler {
    /// Hands a VM over.
    pub async fn claim(&self, project: &ProjectRow, order: &ClaimOrder) -> Result<ClaimReply, ClaimError> {
        // Two requests with one key: the second sees the finished hand-over of the first.
        let _alone = match &order.key {
            Some(key) => Some(self.claims.lock((project.id.clone(), key.clone())).await),
            None => None,
        };
        let began = Instant::now();
        let mut deadline = began + order.patience;
        let mut changes = self.changes.subscribe();
        let mut reservation = Reservation {
            reconciler: self.clone(),
            id: None,
            pooled: order.miss != Miss::Bypass,
        };
        let mut source = ClaimSource::Ready;
        let mut trace = Trace::begin(began);
        loop {
            changes.mark_unchanged();
            // While its own VM is made there is nothing to take: a hundred claims may be waiting, each for its own.
            let is_made = match &reservation.id {
                Some(id) => self.check_reserved(id).await?.state == InstanceState::Ready,
                None => true,
            };
            if is_made {
                // One that leaves the pool alone may take only its own VM: an id that no VM has, until it has that.
                let bypass = || (order.miss == Miss::Bypass).then(InstanceId::generate);
                let only = reservation.id.clone().or_else(bypass);
                if let Some(reply) = self
                    .try_claim(project, order, only.as_ref(), source, began, &mut trace)
                    .await?
                {
                    // Of a claim that is repeated it may be another one: then this one is given back.
                    reservation.id.take_if(|id| *id == reply.id);
                    return Ok(reply);
                }
                if let Some(id) = &reservation.id {
                    let row = self.check_reserved(id).await?;
                    if order.strict && row.state == InstanceState::Ready {
                        // The branch has moved since it was ordered: it is the pool's, and the claim looks again.
                        self.context.store.unreserve_instance(&row.id).await?;
                        reservation.id = None;
                        continue;
                    }
                } else if let Some((made, recipe)) = self.makes_one(project, order, &mut trace).await? {
                    if made == ClaimSource::Fork {
                        deadline = deadline.max(began + FORK_BUDGET);
                    } else if order.patience.is_zero() {
                        return Err(self.nothing_ready(project).await?);
                    }
                    let id = InstanceId::generate();
                    // Before the row is there: whenever this future is dropped, the row is given back.
                    reservation.id = Some(id.clone());
                    self.order_instance(&id, project, Order::Claim { recipe }).await?;
                    source = made;
                }
            }
            if source == ClaimSource::Ready {
                source = ClaimSource::Joined;
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(self.nothing_ready(project).await?);
            }
        }
    }

    /// Whether the claim has a VM made for itself, how, and by which recipe: a fork where there is a template, and a cold one
    /// where waiting alone would be in vain, because nothing is being made for the pool and nothing will be.
    async fn makes_one(
        &self,
        project: &ProjectRow,
        order: &ClaimOrder,
        trace: &mut Trace,
    ) -> Result<Option<(ClaimSource, String)>, StoreError> {
        if order.miss == Miss::Require {
            return Ok(None);
        }
        let store = &self.context.store;
        let pool = store.pool(&project.id).await?;
        let recipe = self.context.wish(project, pool.as_ref()).await?.recipe;
        let templates = store.templates_of(&project.id).await?;
        let from = serving(&templates, project, &recipe);
        let from = from.filter(|template| !order.strict || template.recipe == recipe);
        trace.saw_template(from.is_some());
        if let Some(template) = from {
            return Ok(Some((ClaimSource::Fork, template.recipe.clone())));
        }
        let in_vain = order.miss == Miss::Bypass || pool.is_none_or(|pool| !pool.config.enabled);
        Ok(in_vain.then_some((ClaimSource::Cold, recipe)))
    }

    async fn check_reserved(&self, id: &InstanceId) -> Result<InstanceRow, ClaimError> {
        let row = self.context.store.instance(id).await?;
        match row {
            Some(row) if matches!(row.state, InstanceState::Provisioning | InstanceState::Ready) => Ok(row),
            row => {
                let (kind, reason) = row.map_or((None, None), |row| (row.failure_kind, row.failure_reason));
                Err(ClaimError::Failed {
                    reason: reason.unwrap_or_else(|| "it was removed".to_owned()),
                    blames_recipe: kind.is_some_and(FailureKind::blames_recipe),
                })
            }
        }
    }

    /// Removes an instance that was made for a claim which is gone, unless the claim has it by now: then a repeated key gets it.
    async fn throw_away(&self, id: &InstanceId) -> Result<(), StoreError> {
        let store = &self.context.store;
        loop {
            let row = store.instance(id).await?;
            let gone = |state| matches!(state, InstanceState::Claimed | InstanceState::Deleting);
            let Some(row) = row.filter(|row| !gone(row.state)) else {
                return Ok(());
            };
            let (to, now) = (InstanceState::Deleting, Timestamp::now());
            // Lost: it became ready, or was claimed, meanwhile.
            if store.move_instance(id, to, Some(row.generation), now).await? != Moved::Lost {
                return Ok(());
            }
        }
    }

    async fn nothing_ready(&self, project: &ProjectRow) -> Result<ClaimError, StoreError> {
        let now = Timestamp::now();
        let since = crate::store::Store::failed_window(now);
        let status = self.context.store.pool_status(&project.id, since).await?;
        let enabled = self
            .context
            .store
            .pool(&project.id)
            .await?
            .is_some_and(|pool| pool.config.enabled);
        let held = self.held(&project.id);
        let reason = if let Some(held) = held {
            format!("no VM is ready: {held}")
        } else if !enabled {
            "no VM is ready and the pool is disabled; enable it, or claim with a wait to have one made".to_owned()
        } else {
            format!(
                "no VM is ready ({} being made, {} failed in 24 h); ask again, or claim with a wait",
                status.provisioning, status.failed
            )
        };
        Ok(ClaimError::NothingReady {
            reason,
            retry_after: RETRY_AFTER,
        })
    }

    /// Takes ready instances until one answers; `None` when none is left.
    async fn try_claim(
        &self,
        project: &ProjectRow,
        order: &ClaimOrder,
        reserved: Option<&InstanceId>,
        source: ClaimSource,
        began: Instant,
        trace: &mut Trace,
    ) -> Result<Option<ClaimReply>, ClaimError> {
        let store = &self.context.store;
        loop {
            trace.begin_try();
            let pool = store.pool(&project.id).await?;
            let wish = self.context.wish(project, pool.as_ref()).await?;
            let now = Timestamp::now();
            let wait_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let new = NewClaim {
                project: &project.id,
                key: order.key.as_deref(),
                body_hash: &order.body_hash,
                token: &order.token,
                strict_recipe: order.strict.then_some(wish.recipe.as_str()),
                only: reserved,
                lease: order.lease,
            };
            let taken = store
                .take_ready(&new, &wish.recipe, now, |row, expires_at| ClaimReply {
                    id: row.id.clone(),
                    instance_id: row.vm.clone(),
                    source,
                    recipe: row.recipe.clone(),
                    age_ms: row.provisioned_at.map_or(0, |at| {
                        u64::try_from(now.duration_since(at).as_millis()).unwrap_or_default()
                    }),
                    wait_ms,
                    repos: row.repos.clone(),
                    expires_at,
                    agent: agent_paths(&row.id),
                })
                .await?;
            let (row, mut reply) = match taken {
                Taken::Nothing(look) => {
                    if reserved.is_none() {
                        trace.saw(look);
                    }
                    return Ok(None);
                }
                Taken::Before(claim) if claim.body_hash != order.body_hash => return Err(ClaimError::OtherBody),
                Taken::Before(claim) if claim.ended_at.is_some() => return Err(ClaimError::Ended),
                Taken::Before(claim) if claim.handed_over => return Ok(Some(claim.reply)),
                // The server was killed, or the request went away, before the VM was the task's own: it becomes that now.
                Taken::Before(claim) => match store.instance(&claim.reply.id).await? {
                    Some(row) if row.state == InstanceState::Claimed => (Box::new(row), Box::new(claim.reply)),
                    _ => return Err(ClaimError::Ended),
                },
                Taken::Instance(row, reply, look) => {
                    if reserved.is_none() {
                        trace.saw(look);
                    }
                    (row, reply)
                }
            };
            trace.lap("take");
            let mut unasked = Unasked {
                reconciler: self.clone(),
                id: order.key.is_none().then(|| row.id.clone()),
            };
            let is_current = row.recipe == wish.recipe;
            match self.activate(project, &wish, order, &row, trace).await {
                Ok(repos) => {
                    reply.repos = repos;
                    store.end_hand_over(&reply, &trace.end(order, is_current)).await?;
                    unasked.id = None;
                    tracing::info!(instance = %row.id, project = %project.id, source = ?reply.source, "handed over");
                    self.refill_later();
                    return Ok(Some(*reply));
                }
                Err(unfit) => {
                    store.undo_claim(&row.id, Timestamp::now()).await?;
                    unasked.id = None;
                    self.changed();
                    match unfit {
                        Unfit::Instance(reason) => {
                            trace.skip(&row.id, &reason);
                            tracing::warn!(instance = %row.id, reason, "a ready instance did not answer when it was claimed");
                        }
                        Unfit::Script(reason) => return Err(ClaimError::Script(reason)),
                        Unfit::Store(error) => return Err(error.into()),
                    }
                }
            }
        }
    }

    /// An instance has gone to a task: the pool makes another one, but not this very moment.
    fn refill_later(&self) {
        let reconciler = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REFILL_PAUSE).await;
            reconciler.wake();
        });
    }

    /// Makes the VM the task's own.
    async fn activate(
        &self,
        project: &ProjectRow,
        wish: &Wish,
        order: &ClaimOrder,
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
        trace.lap("connect");
        let clock = tokio::time::timeout_at(budget, agent.sync_clock()).await;
        clock.map_err(|_| Unfit::Instance("its agent did not answer in time".to_owned()))??;
        trace.lap("clock");
        let variables = self.task_variables(project, order, row.recipe == wish.recipe).await?;
        if let Some(variables) = &variables {
            agent
                .write_file(envfile::PATH, envfile::MODE, envfile::render(variables))
                .await?;
        }
        trace.lap("variables");
        let checkouts = &wish.checkouts;
        let (repos, moved) = self.move_checkouts(wish, order, row, &agent).await?;
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
    /// places of those whose script `updateAfterCheckout` has something to do.
    async fn move_checkouts(
        &self,
        wish: &Wish,
        order: &ClaimOrder,
        row: &InstanceRow,
        agent: &AgentClient,
    ) -> Result<(Vec<ClaimedRepo>, Vec<usize>), Unfit> {
        let Wish { checkouts, tips, .. } = wish;
        let (mut repos, mut updates) = (row.repos.clone(), Vec::new());
        for (at, checkout) in checkouts.iter().enumerate() {
            let Some(repo) = repos.iter_mut().find(|repo| repo.path == checkout.path) else {
                continue;
            };
            let from = repo.clone();
            let settings = row
                .settings
                .iter()
                .find(|read| read.repo_full_name == checkout.repo_full_name);
            let mut wishes: Vec<_> = order
                .branch
                .as_deref()
                .map(|branch| (branch, None))
                .into_iter()
                .collect();
            if let Some(commit) = tips.commit(&checkout.url, &checkout.branch) {
                wishes.push((&checkout.branch, Some(commit)));
            }
            for (branch, commit) in wishes {
                if branch == from.branch && commit == Some(from.commit.as_str()) {
                    break;
                }
                let step = Move {
                    checkout,
                    from: &from,
                    branch,
                    commit,
                    settings,
                };
                match step
                    .carry_out(&self.context.mirrors, agent, FETCH_BUDGET.max(order.patience))
                    .await
                {
                    Ok(Some(moved)) => {
                        (repo.branch, repo.commit) = (branch.to_owned(), moved.commit);
                        // Another branch is another task: whatever its files say.
                        if moved.needs_update || order.branch.is_some() {
                            updates.push(at);
                        }
                        break;
                    }
                    // It is there already, unless the repository has no such branch.
                    Ok(None) if commit.is_some() || branch == from.branch => break,
                    Ok(None) => {}
                    Err(MoveError::Agent(error)) => return Err(error.into()),
                    // The VM is good all the same: the reply says where the repository is.
                    Err(error) => {
                        tracing::warn!(instance = %row.id, repo = repo.repo_full_name, branch, %error, "a checkout stays");
                    }
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

fn agent_paths(id: &InstanceId) -> AgentPaths {
    let path = |what: &str| format!("/api/v1/instances/{id}/{what}");
    AgentPaths {
        exec: path("exec"),
        files: path("files"),
        terminal: path("terminal"),
        ports: path("ports"),
    }
}
