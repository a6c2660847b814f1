//! What a claim does next: one pure function from what the claim sees to one step. The server's loop and the simulator do what it
//! says, look again, and ask again, until there is an answer.
//!
//! A claim takes a ready VM of the pool. Where none is ready it has one forked from the pool's template, or built from the image where waiting
//! alone would be in vain, and meanwhile waits in the pool's queue for whatever becomes ready first. Order of the rules: an earlier
//! request with the same key → the project's claims hold as many VMs as they may → refuse what cannot succeed → time for another try is up → what was made for it → the pool → its time is up →
//! make one → join the queue → wait.
//!
//! Time is the time since the claim came.

mod miss;

use std::time::Duration;

use hearth_api::claim::{ClaimSource, Miss};
use hearth_api::ids::InstanceId;

use crate::plan::FORK_BUDGET;
pub use miss::MissFacts;

/// So many VMs are spent on a checkout that cannot be moved to the claim's branch: VMs of one template are alike.
const MOST_STUCK_VMS: usize = 2;
/// No VM is made for a claim this long after the second failure of one that was made for it; twice as long after each more.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// A claim whose VM turned out not to be fit tries others for this long after its time is up, and no longer: where none is fit, its
/// answer must not be put off for as long as there are some.
const MORE_TRIES: Duration = Duration::from_secs(10);
/// The longest time between a failure and the next attempt.
const LONGEST_BACKOFF: Duration = Duration::from_secs(15);

/// How a task wants its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimOrder {
    /// Never one of an older recipe than the target.
    pub strict: bool,
    /// What to do when nothing is ready.
    pub miss: Miss,
    /// How long to wait for what is not ready.
    pub patience: Duration,
}

/// What a claim takes from its pool. Claims of a pool with the same scope share a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimScope {
    Any,
    /// One of the target recipe; what it does not take, others may.
    Target,
    /// None: only what is made for it.
    Own,
}

impl ClaimScope {
    pub const ALL: [Self; 3] = [Self::Any, Self::Target, Self::Own];
}

impl ClaimOrder {
    /// How long it waits at most. What it takes then still has to be handed over.
    #[must_use]
    pub fn longest_wait(&self) -> Duration {
        match self.miss {
            Miss::Require => self.patience,
            Miss::Prefer | Miss::Bypass => self.patience.max(FORK_BUDGET),
        }
    }

    /// What it takes from the pool.
    #[must_use]
    pub const fn scope(&self) -> ClaimScope {
        match self.miss {
            Miss::Bypass => ClaimScope::Own,
            _ if self.strict => ClaimScope::Target,
            _ => ClaimScope::Any,
        }
    }
}

/// What a claim sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimView {
    /// What became of an earlier request with the same key.
    pub earlier: Option<Earlier>,
    /// How many VMs the project's claims hold, where that is limited.
    pub held: Option<Held>,
    pub pool: PoolView,
    /// Where it stands in the pool's queue.
    pub queue: QueueView,
    /// What is made for it, and what others left to it.
    pub reserved: Vec<Reserved>,
    /// How the last VM that was ordered for it is made: forked or cold.
    pub ordered: Option<ClaimSource>,
    /// It has ordered a VM or joined the queue.
    pub has_waited: bool,
    /// How many VMs it took that were not fit to be handed over.
    pub unfit: usize,
    /// What was to be its VM and could not be, oldest first.
    pub failures: Vec<Failure>,
}

/// How many VMs the claims of a project, or of a token, hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub now: u64,
    /// How many they may.
    pub most: u64,
}

impl Held {
    /// Whether they may hold so many more.
    #[must_use]
    pub fn has_room_for(&self, more: u64) -> bool {
        self.now.saturating_add(more) <= self.most
    }
}

/// A pool, as far as its claims are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    /// It is being kept full.
    pub enabled: bool,
    /// The recipe that it is to follow.
    pub target: String,
    /// The recipe of the template that forks come from now: the target's, or the newest older one while that is not built.
    pub template: Option<String>,
    /// What is ready and not reserved for a claim.
    pub ready: Ready,
    /// The target recipe is not built until a person repairs something.
    pub needs_repair: bool,
}

/// How many VMs are ready for any claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    pub any: usize,
    /// Of the target recipe.
    pub target: usize,
}

/// What became of an earlier request with the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Earlier {
    /// It asked for something else.
    OtherRequest,
    /// It was answered, and the VM is still the task's.
    Answered,
    /// It took this VM and was interrupted before it was answered.
    Unfinished(InstanceId),
    /// Its VM is gone.
    Ended,
}

/// Where a claim stands in the queue of its scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueView {
    /// It has no ticket.
    Outside {
        /// How many wait in the queue.
        waiting: usize,
    },
    Inside {
        /// How many came before it.
        ahead: usize,
    },
}

/// An instance that is reserved for the claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    pub id: InstanceId,
    /// What it is made by.
    pub recipe: String,
    /// It can be taken; else it is still being made.
    pub ready: bool,
}

/// What was to be the claim's VM and could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// When the claim saw it.
    pub at: Duration,
    /// What is to blame.
    pub cause: Cause,
    /// What happened, for a person.
    pub reason: String,
}

/// What is to blame for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The project's set-up fails: it would fail again.
    SetUp,
    /// The host, or this one VM: the next one may be better.
    Host,
    /// The checkout could not be moved to the claim's branch.
    Checkout,
}

/// What a claim does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Answer what the earlier request was answered.
    Repeat,
    /// Take a VM and hand it over.
    Take(Take),
    /// Leave what is ready, and does not fit, to the pool.
    GiveBack(InstanceId),
    /// Have a VM made.
    Make {
        /// Forked, or built from the image.
        how: ClaimSource,
        recipe: String,
    },
    Join,
    /// Wait until something changes, or until then.
    Wait {
        /// When to look again at the latest.
        until: Duration,
    },
    /// There is no VM for it.
    Refuse(Refusal),
}

/// Which VM to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Take {
    /// The best ready VM of the pool: the oldest of the target recipe, else of any.
    Pool {
        /// Only of this recipe.
        only: Option<String>,
        /// What the reply says.
        source: ClaimSource,
    },
    /// One that is reserved for the claim.
    Reserved {
        id: InstanceId,
        /// What the reply says.
        source: ClaimSource,
    },
    /// The one that the earlier request took.
    Unfinished(InstanceId),
}

/// Why there is no VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The key was used for something else.
    OtherRequest,
    /// The key's VM is gone.
    Ended,
    /// The project's claims hold as many VMs as they may.
    TooManyHeld,
    /// The VM that was made for it failed: the set-up does.
    SetUpFailed(String),
    /// The VM that was made for it failed, and so did every next one.
    VmFailed(String),
    /// No VM could be moved to its branch.
    Stuck(String),
    /// Nothing is ready, and nothing is made: the pool is disabled.
    Disabled,
    /// Nothing became ready in time.
    NothingReady,
}

/// What a claim can count on when nothing is ready for it.
#[derive(Debug, PartialEq, Eq)]
enum Outlook<'a> {
    /// A fork of the template of this recipe.
    Fork(&'a str),
    /// A VM that is built by this recipe, since waiting alone would be in vain.
    Cold(&'a str),
    /// The target recipe is being built beside an older one, and VMs of it come soon.
    Built,
    /// What is made for the pool, or given back to it.
    Others,
}

/// What the claim does next.
#[must_use]
pub fn next(view: &ClaimView, order: &ClaimOrder, now: Duration) -> Next {
    if let Some(earlier) = &view.earlier {
        return match earlier {
            Earlier::OtherRequest => Next::Refuse(Refusal::OtherRequest),
            Earlier::Ended => Next::Refuse(Refusal::Ended),
            Earlier::Answered => Next::Repeat,
            Earlier::Unfinished(id) => Next::Take(Take::Unfinished(id.clone())),
        };
    }
    if view.held.is_some_and(|held| !held.has_room_for(1)) {
        return Next::Refuse(Refusal::TooManyHeld);
    }
    if let Some(refusal) = no_more_hope(view) {
        return Next::Refuse(refusal);
    }
    let outlook = outlook(view, order);
    let deadline = deadline(view, order, &outlook);
    if view.unfit > 0 && now >= deadline + MORE_TRIES {
        return Next::Refuse(out_of_time(view));
    }
    if let Some(reserved) = view.reserved.iter().find(|reserved| reserved.ready) {
        let id = reserved.id.clone();
        // The target may have moved since it was ordered.
        if order.strict && reserved.recipe != view.pool.target {
            return Next::GiveBack(id);
        }
        // One that it did not order was left to it by another claim.
        let source = view.ordered.unwrap_or(ClaimSource::Joined);
        return Next::Take(Take::Reserved { id, source });
    }
    if its_turn(view, order) && fitting(view, order) > 0 {
        let only = order.strict.then(|| view.pool.target.clone());
        let source = source_in_pool(view);
        return Next::Take(Take::Pool { only, source });
    }
    if now >= deadline {
        return Next::Refuse(out_of_time(view));
    }
    let make_at = next_attempt(&view.failures);
    if view.reserved.is_empty() && now >= make_at {
        let (how, recipe) = match outlook {
            Outlook::Fork(recipe) => (ClaimSource::Fork, recipe),
            Outlook::Cold(recipe) => (ClaimSource::Cold, recipe),
            Outlook::Built | Outlook::Others => return join_or_wait(view, deadline),
        };
        let recipe = recipe.to_owned();
        return Next::Make { how, recipe };
    }
    let until = if view.reserved.is_empty() {
        deadline.min(make_at)
    } else {
        deadline
    };
    join_or_wait(view, until)
}

/// Whether there is a template that a fork for this claim can come from.
fn has_template(view: &ClaimView, order: &ClaimOrder) -> bool {
    template(view, order).is_some()
}

fn template<'a>(view: &'a ClaimView, order: &ClaimOrder) -> Option<&'a str> {
    let template = view.pool.template.as_deref();
    template.filter(|recipe| !order.strict || *recipe == view.pool.target)
}

/// What has failed would fail again.
fn no_more_hope(view: &ClaimView) -> Option<Refusal> {
    let of = |cause| view.failures.iter().filter(move |failure| failure.cause == cause);
    if let Some(failure) = of(Cause::SetUp).next() {
        return Some(Refusal::SetUpFailed(failure.reason.clone()));
    }
    let stuck = of(Cause::Checkout).nth(MOST_STUCK_VMS - 1)?;
    Some(Refusal::Stuck(stuck.reason.clone()))
}

/// Whether no earlier claim waits for the same.
fn its_turn(view: &ClaimView, order: &ClaimOrder) -> bool {
    let before = match view.queue {
        QueueView::Outside { waiting } => waiting,
        QueueView::Inside { ahead } => ahead,
    };
    order.scope() != ClaimScope::Own && before == 0
}

/// How many of the pool's ready VMs the claim may take.
fn fitting(view: &ClaimView, order: &ClaimOrder) -> usize {
    match order.scope() {
        ClaimScope::Any => view.pool.ready.any,
        ClaimScope::Target => view.pool.ready.target,
        ClaimScope::Own => 0,
    }
}

fn source_in_pool(view: &ClaimView) -> ClaimSource {
    match view.ordered {
        _ if !view.has_waited => ClaimSource::Ready,
        // It ordered a fork; a VM of the pool that is ready sooner is reported as that fork.
        Some(ClaimSource::Fork) if !view.reserved.is_empty() => ClaimSource::Fork,
        _ => ClaimSource::Joined,
    }
}

fn outlook<'a>(view: &'a ClaimView, order: &ClaimOrder) -> Outlook<'a> {
    let pool = &view.pool;
    if order.miss == Miss::Require {
        return Outlook::Others;
    }
    if let Some(recipe) = template(view, order) {
        return Outlook::Fork(recipe);
    }
    match () {
        () if order.miss == Miss::Bypass || !pool.enabled => Outlook::Cold(&pool.target),
        () if pool.template.is_some() && !pool.needs_repair => Outlook::Built,
        () => Outlook::Others,
    }
}

/// When the claim is refused. Where a fork is under way, or the template that it needs, it waits long enough for that.
fn deadline(view: &ClaimView, order: &ClaimOrder, outlook: &Outlook<'_>) -> Duration {
    let fork_comes = match view.ordered {
        Some(how) if !view.reserved.is_empty() => how == ClaimSource::Fork,
        _ => matches!(outlook, Outlook::Fork(_) | Outlook::Built),
    };
    if fork_comes {
        order.patience.max(FORK_BUDGET)
    } else {
        order.patience
    }
}

/// When the next VM may be made: at once after the first failure, since what ails one VM seldom ails the next.
fn next_attempt(failures: &[Failure]) -> Duration {
    let mut of_host = failures.iter().filter(|failure| failure.cause == Cause::Host);
    let (count, last) = (of_host.clone().count(), of_host.next_back());
    let Some(last) = last.filter(|_| count > 1) else {
        return Duration::ZERO;
    };
    let doublings = u32::try_from(count - 2).unwrap_or(u32::MAX);
    let backoff = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(doublings));
    last.at + backoff.min(LONGEST_BACKOFF)
}

fn join_or_wait(view: &ClaimView, until: Duration) -> Next {
    match view.queue {
        QueueView::Outside { .. } => Next::Join,
        QueueView::Inside { .. } => Next::Wait { until },
    }
}

fn out_of_time(view: &ClaimView) -> Refusal {
    let last = |cause| {
        let mut of_cause = view.failures.iter().filter(|failure| failure.cause == cause);
        of_cause.next_back().map(|failure| failure.reason.clone())
    };
    if let Some(reason) = last(Cause::Checkout) {
        return Refusal::Stuck(reason);
    }
    if let Some(reason) = last(Cause::Host) {
        return Refusal::VmFailed(reason);
    }
    if view.pool.enabled {
        Refusal::NothingReady
    } else {
        Refusal::Disabled
    }
}
