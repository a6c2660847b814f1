//! Why a pool is as it is, and why a claim got what it got.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::claim::{ClaimSource, ClaimedRepo, Miss};
use crate::ids::{InstanceId, ProjectId};
use crate::instance::{InstanceStatus, Unresponsive};
use crate::pool::Status;
use crate::time;

/// Reply of `GET …/warm-pool/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolExplained {
    /// A summary: one sentence.
    pub summary: String,
    /// The counts of the pool at the same moment.
    pub status: Status,
    /// How many VMs the pool keeps ready while it is enabled: its target size, or another number by its schedule, and no more than its
    /// project may have.
    #[serde(default)]
    #[schema(required)]
    pub target: u64,
    /// Claims that wait for a VM of this pool now.
    #[serde(default)]
    #[schema(required)]
    pub waiting_claims: u64,
    /// Every condition, true or not, always in the same order; then repositories and branches that cannot be followed.
    pub conditions: Vec<Condition>,
    /// The recipe that the pool follows.
    pub recipe: String,
    /// The recipe that new instances are made by: the target recipe, or the previous one while the target recipe has no template.
    pub serving_recipe: String,
    /// What instances are forked from: that of the target recipe, and of those before it; newest first.
    pub templates: Vec<TemplateInfo>,
    /// Where the project's repositories are now, as far as this host has seen.
    pub repositories: Vec<RepositoryExplained>,
    /// Every instance.
    pub instances: Vec<InstanceExplained>,
    /// The planner's latest decisions for this pool, newest first; equal ones are listed once, with a count. Kept in memory:
    /// a restart of the server forgets them.
    pub decisions: Vec<DecisionExplained>,
    /// What this host may be asked for, and what is used of it, by all pools together.
    pub host: HostUse,
}

/// A statement about a pool, true or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// Its name: `Full`, `Fresh`, `Building`, `Rolling`, `RecipeFailing`, `BreakerOpen`, `CapacityLimited`, `HostTrouble`,
    /// `ImageMissing`, `RepositoryMissing`, `Disabled`, `DebugVmKept`; `Unresponsive` where VMs do not answer, `RepositoryUnreachable` and
    /// `BranchMissing` where a branch cannot be followed. There may be more.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it is true.
    pub status: bool,
    /// Since when. Kept in memory: after a restart of the server it starts again.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// For a person: what, and what to do.
    pub message: String,
}

/// What instances are forked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateInfo {
    /// The recipe that it was made by.
    pub recipe: String,
    /// Its checkpoint.
    pub key: String,
    /// New instances come from it now.
    pub serving: bool,
    /// Its checkouts.
    pub repos: Vec<ClaimedRepo>,
    /// When it was made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Where a repository is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryExplained {
    /// `org/name`.
    pub repo_full_name: String,
    /// The branch that the pool follows.
    pub branch: String,
    /// The commit it was last seen at; `null` until it was seen once.
    #[schema(required)]
    pub commit: Option<String>,
    /// When it was first seen there.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
}

/// One instance of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceExplained {
    /// The record.
    pub id: InstanceId,
    /// What it is doing.
    pub status: InstanceStatus,
    /// Made by a test boot.
    pub is_test: bool,
    /// The recipe it was made by.
    pub recipe: String,
    /// Whether that is the pool's recipe now.
    pub current: bool,
    /// What is being done to make it; `null` when it is not being made.
    #[serde(default)]
    #[schema(required)]
    pub at_work: Option<AtWork>,
    /// Its checkouts; empty until they are there.
    pub repos: Vec<RepoBehind>,
    /// Memory that it counts with, MiB.
    pub memory_mib: u64,
    /// Milliseconds since it was requested.
    pub age_ms: u64,
    /// Milliseconds since it came into this state.
    pub since_ms: u64,
    /// Counts up with every move of its state.
    pub generation: i64,
    /// How often in a row it did not answer when it was asked; after a few times one of the pool is replaced.
    pub missed: u32,
    /// It is there and does not answer, and is not replaced, because it is claimed or kept for debugging.
    #[serde(default)]
    #[schema(required)]
    pub unresponsive: Option<Unresponsive>,
    /// When it was last noticed that its guest had restarted.
    #[serde(default, with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub rebooted_at: Option<Timestamp>,
    /// Its set-up failed, and its VM is kept for debugging until then.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub kept_until: Option<Timestamp>,
    /// When its VM was removed whose record stays, with the status that its boot ended in; or when it was noticed that the VM of a claimed
    /// instance had ended by itself.
    #[serde(default, with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub vm_ended_at: Option<Timestamp>,
    /// Why.
    #[serde(default)]
    #[schema(required)]
    pub vm_ended_because: Option<String>,
}

/// What a boot is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AtWork {
    /// The command or the step that runs; `null` between two, and while the VM itself is being made or frozen.
    #[schema(required)]
    pub what: Option<String>,
    /// The same as a message for people, with how long it has run and how long it has printed nothing.
    pub message: String,
}

/// A checkout of an instance, beside where its branch is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepoBehind {
    /// `org/name`.
    pub repo_full_name: String,
    /// The branch that is checked out.
    pub branch: String,
    /// Its commit.
    pub commit: String,
    /// How many commits the branch has that this checkout lacks; `null` where this host cannot tell.
    #[schema(required)]
    pub behind: Option<u64>,
}

/// One decision of the planner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecisionExplained {
    /// When it was last made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// When it was first made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub first_at: Timestamp,
    /// How often.
    pub count: u64,
    /// What was decided: `create`, `build`, `start`, `fail`, `retire`, `delete`, `teardown`, `pause`, `wait`.
    pub action: String,
    /// Why, as a message for people.
    pub reason: String,
    /// The instance it was last about.
    #[schema(required)]
    pub instance: Option<InstanceId>,
    /// The recipe that is made.
    #[schema(required)]
    pub recipe: Option<String>,
    /// What the decision was based on when it was last made.
    pub inputs: DecisionInputs,
}

/// What a decision was based on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecisionInputs {
    /// How many should be ready.
    pub target: u32,
    /// How many were.
    pub ready: u32,
    /// How many were being made.
    pub making: u32,
    /// Failures in a row that blame the target recipe.
    pub recipe_failures: u32,
    /// Failures in a row that blame this host.
    pub host_failures: u32,
    /// VMs that this host could still have.
    pub vms_left: u32,
    /// Memory that VMs of this host could still have, MiB.
    pub memory_left_mib: u32,
    /// VMs that could still be set up at the same time.
    pub provisions_left: u32,
    /// Forks that could still be made at the same time.
    pub forks_left: u32,
    /// VMs that could still be begun at once, whatever they are; fills up with time.
    pub starts_left: u32,
}

/// What this host may be asked for, and what is used of it, as of the last pass over all pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostUse {
    /// VMs that exist.
    pub vms: u64,
    /// VMs that may exist.
    pub max_vms: u64,
    /// Memory that they count with, MiB: measured for paused VMs, as `claimedMemory` says for claimed ones, the whole size for others.
    pub memory_mib: u64,
    /// Memory that they may have, MiB.
    pub max_memory_mib: u64,
    /// How claimed VMs count, and what that comes to now: one sentence.
    #[serde(default)]
    pub claimed_memory: String,
    /// VMs that are being set up.
    pub provisions: u64,
    /// VMs that may be set up at the same time.
    pub max_provisions: u64,
    /// Forks that are being made.
    pub forks: u64,
    /// Forks that may be made at the same time; one of several is kept free for claims.
    pub max_forks: u64,
    /// What checkpoints take on the disk.
    pub template_disk_bytes: u64,
    /// What they may take.
    pub max_template_disk_bytes: u64,
    /// When the host's clock last jumped, as seen by this server; leases were moved along, ages count by the new time.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub clock_jumped_at: Option<Timestamp>,
    /// By how much it jumped, milliseconds; negative: back.
    #[schema(required)]
    pub clock_jumped_by_ms: Option<i64>,
}

/// Reply of `GET /instances/{id}/claim`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimExplained {
    /// The instance.
    pub id: InstanceId,
    /// Whose pool it came from.
    pub project_id: ProjectId,
    /// Where it came from.
    pub source: ClaimSource,
    /// When it was claimed.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub claimed_at: Timestamp,
    /// When it was released or its lease ended.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Why it came from there: one or two sentences.
    pub why: String,
    /// What the hand-over was based on, and where its time went; `null` when the server was killed before it was written.
    #[schema(required)]
    pub hand_over: Option<HandOver>,
}

/// What a hand-over was based on, and where its time went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandOver {
    /// VMs that were ready when the claim came; `null` when it takes none of them (`miss: bypass`).
    #[schema(required)]
    pub ready: Option<u32>,
    /// Those of the target recipe among them.
    #[schema(required)]
    pub ready_current: Option<u32>,
    /// The claim was strict: it takes no older recipe.
    pub strict: bool,
    /// What the claim asked for where none is ready (`miss`).
    pub miss: Miss,
    /// The VM is of what was the pool's target recipe then.
    pub current: bool,
    /// There was a template to fork from; `null` when that did not matter.
    #[schema(required)]
    pub template: Option<bool>,
    /// Ready VMs that turned out to be unfit and were removed.
    pub skipped: Vec<SkippedInstance>,
    /// Why it was not warm: why no ready VM of the pool was handed over; `null` when one was.
    #[serde(default)]
    #[schema(required)]
    pub cause: Option<MissCause>,
    /// Where the time went, in the order of the work; together they are `totalMs`.
    pub phases: Vec<ClaimPhase>,
    /// From the request to the reply, milliseconds.
    pub total_ms: f64,
}

/// The one cause of a claim that got no ready VM of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum MissCause {
    /// The claim was to leave the pool alone (`miss: bypass`).
    Bypass,
    /// The pool is disabled: it keeps no VMs.
    PoolDisabled,
    /// All ready VMs that were tried were not fit.
    Unfit,
    /// The claim was strict, and the ready VMs were of an older recipe.
    OlderRecipe,
    /// The set-up fails: the pool is not filled until it is repaired.
    SetUpFails,
    /// There was no template yet: the pool's first VMs were being made.
    NoTemplate,
    /// Claims came faster than the pool was filled: none was ready.
    Drained,
}

impl MissCause {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Bypass,
        Self::PoolDisabled,
        Self::Unfit,
        Self::OlderRecipe,
        Self::SetUpFails,
        Self::NoTemplate,
        Self::Drained,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::PoolDisabled => "poolDisabled",
            Self::Unfit => "unfit",
            Self::OlderRecipe => "olderRecipe",
            Self::SetUpFails => "setUpFails",
            Self::NoTemplate => "noTemplate",
            Self::Drained => "drained",
        }
    }
}

/// A ready VM that was not fit to be handed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SkippedInstance {
    /// Which.
    pub id: InstanceId,
    /// Why.
    pub reason: String,
    /// What the try cost, milliseconds.
    pub ms: f64,
}

/// A part of a hand-over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClaimPhase {
    /// `wait` (until there was a VM), `skipped` (on unfit ones), `take` (the transaction), `resume` (the VM runs again), `connect` (to
    /// its agent), `clock`, `variables`, `checkouts` (to where their branches are), `scripts` (of what moved),
    /// `stale` (what differs, of a VM that an older set-up made).
    pub name: String,
    /// Milliseconds.
    pub ms: f64,
}
