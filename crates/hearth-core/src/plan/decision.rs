//! What a pass decides: actions with their reasons, and what holds pools back.

use hearth_api::ids::{InstanceId, ProjectId, VmId};

use crate::state::FailureKind;
use crate::world::{Failure, InstanceWorld};

/// One thing to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write a row for a new instance of this pool and make its VM.
    Create {
        project: ProjectId,
        /// What it is made by.
        recipe: String,
        reason: Reason,
    },
    /// Write a row for the instance that builds the target recipe, one above the pool's target size, and make its VM.
    Build { project: ProjectId },
    /// Begin to make the VM of a row that a test boot or a claim wrote.
    Start { instance: InstanceId },
    /// The instance has failed.
    Fail {
        instance: InstanceId,
        /// As of this generation.
        generation: i64,
        failure: Failure,
    },
    /// Destroy the VM, keep the record.
    Retire {
        instance: InstanceId,
        /// As of this generation.
        generation: i64,
        reason: Reason,
    },
    /// Destroy the VM and remove the record.
    Delete {
        instance: InstanceId,
        /// As of this generation.
        generation: i64,
        reason: Reason,
    },
    /// Continue to destroy the VM of an instance that is retiring or deleting.
    Teardown { instance: InstanceId },
    /// Pause the VM of a ready instance: a person worked in it, or a claim gave it back.
    Pause { instance: InstanceId },
    /// Destroy a VM that no row names.
    DestroyOrphan { vm: VmId },
}

impl Action {
    pub(super) fn fail(row: &InstanceWorld, failure: Failure) -> Self {
        Self::Fail {
            instance: row.id.clone(),
            generation: row.generation,
            failure,
        }
    }

    pub(super) fn retire(row: &InstanceWorld, reason: Reason) -> Self {
        Self::Retire {
            instance: row.id.clone(),
            generation: row.generation,
            reason,
        }
    }

    pub(super) fn delete(row: &InstanceWorld, reason: Reason) -> Self {
        Self::Delete {
            instance: row.id.clone(),
            generation: row.generation,
            reason,
        }
    }

    /// Its name in the log.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Build { .. } => "build",
            Self::Start { .. } => "start",
            Self::Fail { .. } => "fail",
            Self::Retire { .. } => "retire",
            Self::Delete { .. } => "delete",
            Self::Teardown { .. } => "teardown",
            Self::Pause { .. } => "pause",
            Self::DestroyOrphan { .. } => "destroy_orphan",
        }
    }

    /// The instance that it is about; nothing for one that is still to be made, and for a VM without a row.
    #[must_use]
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::Create { .. } | Self::Build { .. } | Self::DestroyOrphan { .. } => None,
            Self::Start { instance }
            | Self::Fail { instance, .. }
            | Self::Retire { instance, .. }
            | Self::Delete { instance, .. }
            | Self::Teardown { instance }
            | Self::Pause { instance } => Some(instance),
        }
    }
}

/// Why the planner does something; shown to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Fewer instances than the target.
    BelowTarget,
    /// A stale one is about to be replaced.
    ReplaceStale,
    /// More instances than the target.
    Surplus,
    /// It is the oldest of a full pool, and what is pushed needs its place to be set up.
    MakesRoom,
    /// The pool is disabled.
    PoolDisabled,
    /// It is too old or made by an older recipe, and its replacement is ready.
    Stale,
    /// The lease of its claim ended.
    LeaseEnded,
    /// The time of a test boot's VM is up.
    TestTimeUp,
    /// The VM of a test boot ended before its time was up.
    TestVmEnded,
    /// A person ended its boot.
    Cancelled,
    /// The record of a failed VM needs no VM.
    FailedVmNotNeeded,
    /// The record has been kept long enough.
    RecordExpired,
    /// It has made a new template and is of no other use.
    Built,
    /// A server that is gone left it half made.
    HalfMade,
}

impl Reason {
    pub const ALL: [Self; 14] = [
        Self::BelowTarget,
        Self::ReplaceStale,
        Self::Surplus,
        Self::MakesRoom,
        Self::PoolDisabled,
        Self::Stale,
        Self::LeaseEnded,
        Self::TestTimeUp,
        Self::TestVmEnded,
        Self::Cancelled,
        Self::FailedVmNotNeeded,
        Self::RecordExpired,
        Self::Built,
        Self::HalfMade,
    ];

    /// Its name in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BelowTarget => "below_target",
            Self::ReplaceStale => "replace_stale",
            Self::Surplus => "surplus",
            Self::MakesRoom => "makes_room",
            Self::PoolDisabled => "pool_disabled",
            Self::Stale => "stale",
            Self::LeaseEnded => "lease_ended",
            Self::TestTimeUp => "test_time_up",
            Self::TestVmEnded => "test_vm_ended",
            Self::Cancelled => "cancelled",
            Self::FailedVmNotNeeded => "failed_vm_not_needed",
            Self::RecordExpired => "record_expired",
            Self::Built => "built",
            Self::HalfMade => "half_made",
        }
    }
}

/// Why a pool gets fewer VMs than it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blocker {
    /// All VMs of this host together may not be more.
    HostVms { max: usize },
    /// The memory of all VMs of this host together may not be more.
    HostMemory {
        /// What one more would take, MiB.
        wants_mib: u64,
        /// What is left, MiB.
        left_mib: u64,
        /// What must be left after it, MiB, so that what is pushed can be set up.
        kept_mib: u64,
    },
    /// The tenant's limit.
    TenantVms { max: usize },
    /// The project's own limit.
    ProjectVms,
    /// So many are in the making already.
    InTheMaking,
    /// Something that the recipe needs is not there: the image, a repository, a branch.
    Missing {
        kind: FailureKind,
        /// How often it was looked for in vain.
        failures: u32,
    },
    /// The set-up failed too often in a row.
    BreakerOpen { failures: u32 },
    /// The host failed; the next try waits.
    HostTrouble { failures: u32 },
}

/// What one pass decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// Which pools are held back, and why.
    pub blockers: Vec<(ProjectId, Blocker)>,
}
