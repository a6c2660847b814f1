//! What the planner sees: one snapshot of the configured pools and of what exists, joined from the store and the drivers.

use hearth_api::ids::{InstanceId, ProjectId, VmId};
use jiff::Timestamp;

use crate::purpose::Purpose;
use crate::redact::Redacted;
use crate::state::{FailureKind, InstanceState};

/// Everything one pass decides on.
#[derive(Debug, Clone)]
pub struct World {
    /// The time of the pass; the planner has no clock.
    pub now: Timestamp,
    /// What the host may be asked for.
    pub limits: Limits,
    /// Every project that has a pool or an instance.
    pub pools: Vec<PoolWorld>,
    /// Whether VMs can be paused.
    pub can_pause: bool,
    /// VMs of this installation that no row names.
    pub orphans: Vec<VmId>,
    /// Whether the drivers answered: without their answer no VM is called lost and no orphan is named.
    pub drivers_observed: bool,
}

/// What the host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// VMs that may exist at once, in any state.
    pub max_vms: usize,
    /// VMs that one tenant may have at once, in any state.
    pub tenant_vms: Option<usize>,
    /// Sum of the memory sizes of all VMs, MiB.
    pub memory_mib: u64,
    /// VMs that may be in the making at once, set-up and all.
    pub concurrent_provisions: usize,
    /// Forks of a template that may be in the making at once. One of several is kept free for claims.
    pub concurrent_forks: usize,
    /// VMs that may still be begun in this pass: a bucket that fills up again with time, so that nothing that goes round in
    /// circles takes the host with it.
    pub tokens: usize,
}

/// One pool and its instances.
#[derive(Debug, Clone)]
pub struct PoolWorld {
    pub project: ProjectId,
    /// Whose project: a number for each tenant, good for this pass alone.
    pub tenant: usize,
    /// Whether VMs are kept ready.
    pub enabled: bool,
    pub target: usize,
    /// Most VMs the project may have at once, in any state.
    pub max_vms: Option<usize>,
    /// How long an instance may stay in the pool, seconds.
    pub max_age_seconds: i64,
    /// Name of the recipe that the pool is to follow.
    pub recipe: String,
    /// Memory that one more VM of it takes, MiB: the whole size where it must be set up, what a fork costs where it is forked.
    pub memory_mib: u64,
    /// Memory of the VM that a new recipe is set up in, MiB; 0 where templates are not made.
    pub build_mib: u64,
    /// An instance of it can be made at once: its template is there, or the driver makes none.
    pub prepared: bool,
    /// How the latest boots by it ended.
    pub streak: FailureStreak,
    /// The newest older recipe that has a template, while the target recipe has none.
    pub previous: Option<PreviousRecipe>,
    /// All instances of the project.
    pub instances: Vec<InstanceWorld>,
}

/// An older recipe that has a template and keeps serving until the target recipe has one, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousRecipe {
    pub recipe: String,
    /// Memory that one more fork takes, MiB.
    pub memory_mib: u64,
    /// How the latest forks ended.
    pub streak: FailureStreak,
}

/// How the latest boots by a recipe ended: failures from the newest backwards to the last success, or successes from the
/// newest backwards to the last failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FailureStreak {
    /// Failures that blame the recipe.
    pub recipe: u32,
    /// Failures that blame the host.
    pub host: u32,
    /// When the newest one happened.
    pub last_at: Option<Timestamp>,
    pub last_kind: Option<FailureKind>,
    /// Successes; nothing failed since.
    pub successes: u32,
}

impl FailureStreak {
    /// After one more boot that went well.
    #[must_use]
    pub fn succeeded(self) -> Self {
        let successes = if self.last_at.is_some() { 0 } else { self.successes };
        Self {
            successes: successes.saturating_add(1),
            ..Self::default()
        }
    }

    /// After one more boot that failed.
    #[must_use]
    pub fn failed(self, kind: FailureKind, at: Timestamp) -> Self {
        let mut after = Self { successes: 0, ..self };
        if kind.blames_recipe() {
            after.recipe += 1;
        } else if kind.blames_host() {
            after.host += 1;
        } else {
            return self;
        }
        (after.last_at, after.last_kind) = (Some(at), Some(kind));
        after
    }
}

#[derive(Debug, Clone)]
pub struct InstanceWorld {
    pub id: InstanceId,
    pub state: InstanceState,
    /// Counts up with every move; a decision is only good for the generation it saw.
    pub generation: i64,
    /// What it is made for.
    pub purpose: Purpose,
    /// The recipe it is (being) made by.
    pub recipe: String,
    /// It is (to be) forked from a template that is there.
    pub forked: bool,
    /// Whose fault its failure was.
    pub failure: Option<FailureKind>,
    /// Memory that its VM counts with, MiB: measured for a paused one, measured and with a share to grow by for a claimed one
    /// ([`crate::memory::counts_in_use`]), its whole size for any other.
    pub memory_mib: u64,
    /// When it was requested.
    pub created_at: Timestamp,
    /// When it came into its state.
    pub state_since: Timestamp,
    /// End of the claim's lease.
    pub lease_ends_at: Option<Timestamp>,
    /// What the driver says.
    pub vm: VmPresence,
    /// Who works on it.
    pub work: Work,
}

impl InstanceWorld {
    /// The claim that waited for it, if one did, has gone away.
    pub fn release(&mut self) {
        self.purpose = self.purpose.without_claim();
    }

    /// Whether its VM can still be of use. Without the drivers' answer it counts as usable.
    #[must_use]
    pub fn is_there(&self, drivers_observed: bool) -> bool {
        !drivers_observed || self.vm.is_alive()
    }

    /// Whether its VM is being made right now.
    #[must_use]
    pub fn is_in_the_making(&self) -> bool {
        self.state == InstanceState::Provisioning && self.work == Work::Here
    }
}

/// What the driver says of an instance's VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmPresence {
    Running,
    Paused,
    /// Something on the host has stopped it: nothing in it answers until it is resumed.
    Halted,
    /// It is there but does not run.
    Stopped,
    /// There is nothing of it.
    Absent,
}

impl VmPresence {
    /// Whether it can still be of use.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Who works on an instance right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Its work has not begun.
    Unstarted,
    /// A task of this server is at it.
    Here,
    /// A server that is gone had begun.
    Abandoned,
    Idle,
}

/// Why an instance failed, in a failure that the planner itself detects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub reason: Redacted,
}
