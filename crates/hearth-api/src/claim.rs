//! The hand-over of one instance to one task.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{InstanceId, VmId};
use crate::patch::{object_or_null, required_whole, whole_or_null};
use crate::project::GitIdentity;
use crate::time;
use crate::values::{Branch, CheckpointName, TaskId, VariableName, VariableValue};

/// What to do when no instance is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Miss {
    /// Take a ready one if there is one, else wait for one being made, else make one.
    #[default]
    Prefer,
    /// Take a ready one or answer 429 (after waiting `waitMs`, if given).
    Require,
    /// Leave the pool alone and make one.
    Bypass,
}

/// Body of `POST …/warm-pool/claim`; all optional.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "taskId": "task-4711", "branch": "feature/login", "waitMs": 60_000 }))]
pub struct ClaimRequest {
    /// The idempotency key: same key + same body = the same VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// Check this branch out in every repository that has it. When none has it, nothing is handed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<Branch>,
    /// Never hand out an older recipe. While the new one is set up beside it the claim waits, for up to 50 s if `waitMs` is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// What to do when no instance is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miss: Option<Miss>,
    /// How long to wait for an instance that is being made, milliseconds. The server may be told to wait less. Checkouts and scripts in
    /// the instance are not counted.
    #[serde(default, deserialize_with = "whole_or_null", skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3_600_000)]
    pub wait_ms: Option<u64>,
    /// Length of the lease; a heartbeat renews it.
    #[serde(default, deserialize_with = "whole_or_null", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10_080)]
    pub ttl_minutes: Option<u64>,
    /// Variables for this task alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<VariableName, VariableValue>>,
    /// Who makes the commits in the VM: the project's identity when absent, and without one the owner of the token.
    #[serde(
        default,
        deserialize_with = "object_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    pub git_identity: Option<GitIdentity>,
    /// Continue from this named checkpoint of the project instead of taking a VM of the pool. The VM is as the checkpoint is, so of the other
    /// fields only `taskId` and `ttlMinutes` go with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointName>,
}

impl std::fmt::Debug for ClaimRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClaimRequest")
            .field("task_id", &self.task_id)
            .finish_non_exhaustive()
    }
}

/// Where a claimed VM came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClaimSource {
    /// It was ready in the pool.
    Ready,
    /// It was forked for this claim: from the template, a named checkpoint, or a VM in use.
    Fork,
    /// It was being made already, and the claim waited for it.
    Joined,
    /// It was made for this claim.
    Cold,
}

impl ClaimSource {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Fork, Self::Joined, Self::Cold];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Fork => "fork",
            Self::Joined => "joined",
            Self::Cold => "cold",
        }
    }
}

/// Reply of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimReply {
    /// The instance's id: what release, heartbeat and exec take.
    pub id: InstanceId,
    /// The VM's name.
    pub instance_id: VmId,
    /// Where it came from.
    pub source: ClaimSource,
    /// Hash of everything that decided what the VM holds.
    pub recipe: String,
    /// Milliseconds since it became ready.
    pub age_ms: u64,
    /// Milliseconds from the request to this reply: until there was a VM, and for what was done in it for the claim.
    pub wait_ms: u64,
    /// Its checkouts.
    pub repos: Vec<ClaimedRepo>,
    /// End of the lease; a heartbeat renews it.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// The VM was made by an older version of the set-up; what changed since is not in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
    /// When the set-up changed.
    #[serde(default, with = "time::nullable", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub stale_since: Option<Timestamp>,
    /// What changed; empty where that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale_parts: Vec<SetUpPart>,
    /// Paths for the work inside.
    pub agent: AgentPaths,
}

/// A part of a project's set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum SetUpPart {
    /// Who makes commits while it is set up.
    GitIdentity,
    /// What Hearth itself does with the same set-up.
    Hearth,
    /// The image.
    Image,
    /// Whether hooks in `.capy/settings.json` run.
    LegacyHooks,
    /// The project's set-up commands.
    ProjectSetup,
    /// The repositories and their branches.
    Repositories,
    /// The scripts of the setup object.
    Scripts,
    /// The pool's set-up commands.
    SetupCommands,
    /// The shared variables.
    Variables,
    /// The size of the VMs.
    VmSize,
}

/// One checkout in a claimed VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedRepo {
    /// `org/name`.
    pub repo_full_name: String,
    /// The branch that is checked out.
    pub branch: String,
    /// Its commit.
    pub commit: String,
    /// Where it is in the VM.
    pub path: String,
    /// The repository has no branch of the name that was asked for: it is on its own branch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub branch_missing: bool,
    /// It is not at the newest commit of its branch that is known; `why` says what kept it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub behind: bool,
    /// The set-up moved or removed it: there is no repository at `path`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// What the set-up was run on, where the set-up itself checked something else out: `branch` and `commit` say what it left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloned: Option<ClonedFrom>,
    /// Why it is behind, as a message for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Where a repository was when its set-up began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClonedFrom {
    /// Its branch.
    pub branch: String,
    /// The branch's commit.
    pub commit: String,
}

impl ClaimedRepo {
    /// The branch and the commit that the set-up was run on.
    #[must_use]
    pub fn cloned(&self) -> (&str, &str) {
        match &self.cloned {
            Some(from) => (&from.branch, &from.commit),
            None => (&self.branch, &self.commit),
        }
    }
}

/// Paths, relative to the server's address, for the work inside a claimed VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentPaths {
    /// Run commands.
    pub exec: String,
    /// Read and write files.
    pub files: String,
    /// A terminal (WebSocket).
    pub terminal: String,
    /// A port inside.
    pub ports: String,
}

/// Reply of a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// The instance.
    pub id: InstanceId,
    /// The new end of the lease.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// Longest lease, counted from now: 7 days.
pub const MAX_LEASE_MINUTES: u64 = 10_080;

/// Body of `POST /instances/{id}/extend`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "minutes": 120 }))]
pub struct ExtendRequest {
    /// By how much later the lease ends.
    #[serde(deserialize_with = "required_whole")]
    #[schema(minimum = 1, maximum = 10_080)]
    pub minutes: u64,
}

/// Reply of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Released {
    /// The instance; its VM is being destroyed.
    pub id: InstanceId,
    /// Always true.
    pub released: bool,
}

/// Reply of `POST /instances/{id}/pause` and `POST /instances/{id}/resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Paused {
    /// The instance.
    pub id: InstanceId,
    /// Whether its VM is paused now.
    pub paused: bool,
    /// Whether it is paused to the disk.
    #[serde(default)]
    #[schema(required)]
    pub to_disk: bool,
}
