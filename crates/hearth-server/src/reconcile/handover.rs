//! The hand-over of one instance to one task: which one, after how long a wait, and the transaction that makes it nobody else's.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_api::claim::{AgentPaths, ClaimReply, ClaimSource, Miss};
use hearth_api::ids::{InstanceId, TokenId};
use hearth_api::project::GitIdentity;
use hearth_core::plain_text::clause;
use hearth_core::plan::FORK_BUDGET;
use hearth_core::state::{FailureKind, InstanceState};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::activate::{FETCH_BUDGET, Unfit};
use super::line::{Place, Wants};
use super::reservation::{Reservation, Unasked};
use super::trace::Trace;
use super::{Order, Reconciler};
use crate::provision::blueprint::checkouts;
use crate::provision::branches::{Asked, BranchError};
use crate::provision::{millis, serving};
use crate::store::{AskedFields, ClaimRow, Look, Moved, NewClaim, ProjectRow, StoreError, Taken};

/// Whoever gets a VM runs something in it at once: the refill does not take the processor from that.
const REFILL_PAUSE: Duration = Duration::from_millis(100);
/// So many VMs are spent on a checkout that does not move: those of one template are alike.
const STUCK_VMS: usize = 2;
/// After the second failure of a VM that was made for a claim, and so on twice as long after each, so long passes until the next
/// one is made.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// What a client is told to wait before it asks again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The fields of a claim that decide which VM it gets.
pub const FIELDS_OF_A_KEY: [&str; 5] = ["branch", "strict", "env", "gitIdentity", "ttlMinutes"];

/// What a task asks for.
#[derive(Clone)]
pub struct ClaimOrder {
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
    /// Who makes the commits, where the claim says it.
    pub git_identity: Option<GitIdentity>,
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
    /// Nothing is ready, and nobody makes anything.
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
    /// The branch is not there, or nobody knows.
    #[error("{0}; nothing was handed over")]
    Branch(#[from] BranchError),
    /// No VM could be brought to the branch that was asked for.
    #[error("{}; nothing was handed over", clause(.0))]
    Stuck(String),
    /// The host does not have what would be brought into the VM.
    #[error("{}; nothing was handed over, try again", clause(.0))]
    Host(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A claim on its way.
struct Course {
    /// Where the branch is that it asks for.
    asked: Option<Asked>,
    /// Its place in the line.
    place: Option<Place>,
    /// What it saw and where its time went.
    trace: Trace,
    /// Why VMs could not be brought to the branch.
    stuck: Vec<String>,
    /// Why the VMs failed that were made for it.
    failed: Vec<String>,
}

/// What became of an instance that is reserved for a claim.
enum Reserved {
    /// It is not ready yet.
    Making,
    /// It can be taken.
    Ready,
    /// It never will be.
    Gone {
        /// What happened, where its record says that.
        reason: Option<String>,
        /// The project's set-up fails.
        blames_recipe: bool,
    },
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

impl ClaimOrder {
    /// Whether the claim that used the key before asked for the same VM. How long one waits is no part of that.
    fn is_same_as(&self, before: &ClaimRow) -> bool {
        match &before.asked {
            Some(_) => before.token == self.token && self.differs_from(before).is_empty(),
            // It was made by a version that kept one hash of all.
            None => before.body_hash == self.body_hash,
        }
    }

    /// The fields that say something else than they did; none when another token asks, whose hashes say nothing.
    fn differs_from(&self, before: &ClaimRow) -> Vec<&'static str> {
        let Some(asked) = before.asked.as_ref().filter(|_| before.token == self.token) else {
            return Vec::new();
        };
        let differs = |field: &&&'static str| asked.get(**field) != self.asked.get(**field);
        FIELDS_OF_A_KEY.iter().filter(differs).copied().collect()
    }

    fn wants(&self) -> Wants {
        match self.miss {
            Miss::Bypass => Wants::Own,
            _ if self.strict => Wants::Current,
            _ => Wants::Any,
        }
    }
}

/// What a claim for which nothing stood ready can count on.
#[derive(Debug)]
enum Outlook {
    /// One is made for it by this recipe: a fork where there is a template, and a cold one where waiting alone would be in vain,
    /// because nothing is being made for the pool and nothing will be.
    Own(ClaimSource, String),
    /// The only template is too old for a strict claim; the one that it wants is set up beside it.
    Built,
    /// What is made for others, or given back.
    Others,
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
        let wants = order.wants();
        let asked = self.asked(project, order).await?;
        let mut reservation = Reservation::new(self, &project.id, wants != Wants::Own);
        // Who has waited longer is served before.
        let place = (wants != Wants::Own && !self.lines.is_empty(&project.id, wants))
            .then(|| self.lines.join(&project.id, wants, None, reservation.inbox()));
        let mut made = ClaimSource::Fork;
        let mut course = Course {
            asked,
            place,
            trace: Trace::begin(began),
            stuck: Vec::new(),
            failed: Vec::new(),
        };
        let mut next_order = began;
        if course.place.is_some() {
            // Whatever stood ready would be theirs.
            course.trace.saw(Look::default());
        }
        let mut is_new = true;
        loop {
            for id in reservation.ids() {
                let mut state = self.reserved(&id).await?;
                if matches!(state, Reserved::Ready) {
                    let own = Some(&id);
                    if let Some(reply) = self.try_claim(project, order, own, made, &mut course).await? {
                        // Of a claim that is repeated it may be another one: then this one is given back.
                        reservation.forget(&reply.id);
                        return Ok(reply);
                    }
                    state = self.reserved(&id).await?;
                }
                match state {
                    Reserved::Ready if order.strict => {
                        // The branch has moved since it was ordered: it is the pool's, and the claim looks again.
                        self.context.store.unreserve_instance(&id).await?;
                        reservation.forget(&id);
                        self.changed(&project.id, &id);
                    }
                    Reserved::Ready | Reserved::Making => {}
                    Reserved::Gone {
                        reason,
                        blames_recipe: true,
                    } => return Err(failed(reason, true)),
                    // The host's trouble: the next one may be better.
                    Reserved::Gone { reason, .. } => {
                        reservation.forget(&id);
                        course.failed.extend(reason);
                        next_order = Instant::now() + pause_after(course.failed.len());
                    }
                }
            }
            let may_take = wants != Wants::Own && course.place.as_ref().is_none_or(Place::is_first);
            if may_take || is_new {
                // Whoever may take nothing looks whether its key was used before: an id that no VM has.
                let nobody = (!may_take).then(InstanceId::generate);
                let source = match made {
                    _ if is_new => ClaimSource::Ready,
                    // It asked for a fork and gets one, if not the very one that was begun for it.
                    ClaimSource::Fork if !reservation.is_empty() => ClaimSource::Fork,
                    _ => ClaimSource::Joined,
                };
                let taken = self.try_claim(project, order, nobody.as_ref(), source, &mut course);
                if let Some(reply) = taken.await? {
                    return Ok(reply);
                }
            }
            is_new = false;
            if reservation.is_empty() && Instant::now() >= next_order {
                let outlook = self.outlook(project, order, &mut course.trace).await?;
                match outlook {
                    Outlook::Own(ClaimSource::Fork, _) | Outlook::Built => deadline = deadline.max(began + FORK_BUDGET),
                    _ if order.patience.is_zero() => return Err(self.nothing_ready(project, &course).await?),
                    _ => {}
                }
                if let Outlook::Own(how, recipe) = outlook {
                    let id = InstanceId::generate();
                    // Before the row is there: whenever this future is dropped, the row is given back.
                    reservation.add(id.clone());
                    if let Some(place) = &course.place {
                        place.owns(&id);
                    }
                    self.order_instance(&id, project, Order::Claim { recipe }).await?;
                    made = how;
                }
            }
            if Instant::now() >= deadline {
                return Err(self.nothing_ready(project, &course).await?);
            }
            if let Some(place) = &course.place {
                // At the end of its time it looks once more.
                let _ = tokio::time::timeout_at(deadline, place.rung()).await;
            } else {
                // What became ready since the look above rang nobody: looked at once more.
                let own = reservation.ids().first().cloned();
                course.place = Some(self.lines.join(&project.id, wants, own, reservation.inbox()));
            }
        }
    }

    /// Looks for the branch that is asked for, before anything is taken. A claim that was answered before is answered the same,
    /// whatever became of the branch.
    async fn asked(&self, project: &ProjectRow, order: &ClaimOrder) -> Result<Option<Asked>, ClaimError> {
        let Some(branch) = &order.branch else { return Ok(None) };
        let store = &self.context.store;
        if let Some(key) = &order.key
            && store
                .claim_of(&project.id, key)
                .await?
                .is_some_and(|claim| claim.handed_over)
        {
            return Ok(None);
        }
        let pool = store.pool(&project.id).await?;
        let checkouts = checkouts(project, pool.as_ref());
        let patience = FETCH_BUDGET.max(order.patience);
        Ok(Some(
            Asked::look(&self.context.mirrors, &checkouts, branch, patience).await?,
        ))
    }

    async fn outlook(
        &self,
        project: &ProjectRow,
        order: &ClaimOrder,
        trace: &mut Trace,
    ) -> Result<Outlook, StoreError> {
        if order.miss == Miss::Require {
            return Ok(Outlook::Others);
        }
        let store = &self.context.store;
        let pool = store.pool(&project.id).await?;
        let recipe = self.context.wish(project, pool.as_ref()).await?.recipe;
        let templates = store.templates_of(&project.id).await?;
        let serves = serving(&templates, project, &recipe);
        let from = serves.filter(|template| !order.strict || template.recipe == recipe);
        trace.saw_template(from.is_some());
        if let Some(template) = from {
            return Ok(Outlook::Own(ClaimSource::Fork, template.recipe.clone()));
        }
        Ok(
            if order.miss == Miss::Bypass || pool.is_none_or(|pool| !pool.config.enabled) {
                Outlook::Own(ClaimSource::Cold, recipe)
            } else if serves.is_some() && !self.waits_for_mending(&project.id, &recipe) {
                Outlook::Built
            } else {
                Outlook::Others
            },
        )
    }

    async fn reserved(&self, id: &InstanceId) -> Result<Reserved, StoreError> {
        let row = self.context.store.instance(id).await?;
        Ok(match row {
            Some(row) if row.state == InstanceState::Ready => Reserved::Ready,
            Some(row) if row.state == InstanceState::Provisioning => Reserved::Making,
            row => {
                let kind = row.as_ref().and_then(|row| row.failure_kind);
                let reason = match &row {
                    Some(row) => self.context.store.failure_of(row).await?,
                    None => None,
                };
                Reserved::Gone {
                    reason,
                    blames_recipe: kind.is_some_and(FailureKind::blames_recipe),
                }
            }
        })
    }

    /// Removes an instance that was made for a claim which is gone, unless the claim has it by now: then a repeated key gets it.
    pub(super) async fn throw_away(&self, id: &InstanceId) -> Result<(), StoreError> {
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

    async fn nothing_ready(&self, project: &ProjectRow, course: &Course) -> Result<ClaimError, StoreError> {
        if let Some(sentence) = course.stuck.last() {
            return Ok(ClaimError::Stuck(sentence.clone()));
        }
        if let Some(reason) = course.failed.last() {
            return Ok(failed(Some(reason.clone()), false));
        }
        let now = Timestamp::now();
        let since = crate::store::Store::failed_window(now);
        let status = self.context.store.pool_status(&project.id, since).await?;
        let enabled = self
            .context
            .store
            .pool(&project.id)
            .await?
            .is_some_and(|pool| pool.config.enabled);
        let held = self.held(project).await?;
        let mut retry_after = RETRY_AFTER;
        let reason = if let Some(held) = held {
            // What is being made already may be ready sooner.
            if let Some(until) = held.until.filter(|_| status.provisioning == 0) {
                retry_after = retry_after.max(Duration::try_from(until.duration_since(now)).unwrap_or_default());
            }
            format!("no VM is ready: {}", held.sentence)
        } else if !enabled {
            return Ok(ClaimError::Disabled);
        } else {
            format!(
                "no VM is ready ({} being made, {} failed in 24 h); ask again, or claim with a wait",
                status.provisioning, status.failed
            )
        };
        Ok(ClaimError::NothingReady { reason, retry_after })
    }

    /// Takes ready instances of the pool, or only this one, until one answers; `None` when none is left.
    async fn try_claim(
        &self,
        project: &ProjectRow,
        order: &ClaimOrder,
        only: Option<&InstanceId>,
        source: ClaimSource,
        course: &mut Course,
    ) -> Result<Option<ClaimReply>, ClaimError> {
        let store = &self.context.store;
        let Course {
            asked,
            place,
            trace,
            stuck,
            failed,
        } = course;
        loop {
            trace.begin_try();
            let pool = store.pool(&project.id).await?;
            let wish = self.context.wish(project, pool.as_ref()).await?;
            let now = Timestamp::now();
            let wait_ms = millis(trace.age());
            let new = NewClaim {
                project: &project.id,
                key: order.key.as_deref(),
                body_hash: &order.body_hash,
                asked: &order.asked,
                token: &order.token,
                owner: &order.user,
                strict_recipe: order.strict.then_some(wish.recipe.as_str()),
                only,
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
                    stale: false,
                    stale_since: None,
                    stale_parts: Vec::new(),
                    agent: agent_paths(&row.id),
                })
                .await?;
            let (row, mut reply) = match taken {
                Taken::Nothing(look) => {
                    if only.is_none() {
                        trace.saw(look);
                    }
                    return Ok(None);
                }
                Taken::Before(claim) if !order.is_same_as(&claim) => {
                    return Err(ClaimError::OtherBody(order.differs_from(&claim)));
                }
                Taken::Before(claim) if claim.ended_at.is_some() => return Err(ClaimError::Ended),
                Taken::Before(claim) if claim.handed_over => return Ok(Some(claim.reply)),
                // The server was killed, or the request went away, before the VM was the task's own: it becomes that now.
                Taken::Before(claim) => match store.instance(&claim.reply.id).await? {
                    Some(row) if row.state == InstanceState::Claimed => (Box::new(row), Box::new(claim.reply)),
                    _ => return Err(ClaimError::Ended),
                },
                Taken::Instance(row, reply, look) => {
                    // The next one in the line need not wait until this one is the task's own.
                    *place = None;
                    if only.is_none() {
                        trace.saw(look);
                    }
                    (row, reply)
                }
            };
            trace.lap("take");
            let mut unasked = Unasked::new(self, order.key.is_none().then(|| row.id.clone()));
            let is_current = row.recipe == wish.recipe;
            match self.activate(project, &wish, order, asked.as_ref(), &row, trace).await {
                Ok(repos) => {
                    reply.repos = repos;
                    self.tell_stale(project, pool.as_ref(), &wish.recipe, &mut reply)
                        .await?;
                    if reply.stale {
                        trace.lap("stale");
                    }
                    // Until here, and not until there was a VM: bringing its checkouts to where they belong is waited for as well.
                    reply.wait_ms = millis(trace.age());
                    store.end_hand_over(&reply, &trace.end(order, is_current)).await?;
                    unasked.disarm();
                    tracing::info!(instance = %row.id, project = %project.id, source = ?reply.source, "handed over");
                    self.refill_later();
                    return Ok(Some(*reply));
                }
                Err(unfit) => {
                    store.undo_claim(&row.id, Timestamp::now()).await?;
                    unasked.disarm();
                    self.wake();
                    match unfit {
                        Unfit::Instance(reason) => {
                            trace.skip(&row.id, &reason);
                            tracing::warn!(instance = %row.id, reason, "a ready instance did not answer when it was claimed");
                            if only.is_some() {
                                failed.push(reason);
                            }
                        }
                        Unfit::Script(reason) => return Err(ClaimError::Script(reason)),
                        Unfit::Host(reason) => return Err(ClaimError::Host(reason)),
                        Unfit::Stuck(reason) => {
                            trace.skip(&row.id, &reason);
                            tracing::warn!(instance = %row.id, reason, "a VM could not be brought to the branch of its claim");
                            stuck.push(reason.clone());
                            if stuck.len() >= STUCK_VMS {
                                return Err(ClaimError::Stuck(reason));
                            }
                        }
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
}

fn failed(reason: Option<String>, blames_recipe: bool) -> ClaimError {
    ClaimError::Failed {
        reason: reason.unwrap_or_else(|| "it was removed".to_owned()),
        blames_recipe,
    }
}

/// How long no VM is made for a claim after so many of its own have failed: none after the first, since what ails one VM seldom ails
/// the next.
fn pause_after(failures: usize) -> Duration {
    let doublings = u32::try_from(failures.saturating_sub(2)).unwrap_or(u32::MAX);
    match failures {
        0 | 1 => Duration::ZERO,
        _ => FIRST_PAUSE
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(LONGEST_PAUSE),
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
