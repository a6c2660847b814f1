//! Forks and named checkpoints of claimed VMs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::claim::ClaimReply;
use crate::ids::{InstanceId, ProjectId};
use crate::patch::whole_or_null;
use crate::time;
use crate::values::{CheckpointName, Description, TaskId};

/// Most forks of one request.
pub const MAX_FORKS: u64 = 64;

/// Body of `POST /instances/{id}/fork`; all optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "count": 3, "taskId": "attempts" }))]
pub struct ForkRequest {
    /// How many; one when absent.
    #[serde(default, deserialize_with = "whole_or_null", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub count: Option<u64>,
    /// The idempotency key: the claims of the forks are of the tasks `<taskId>-1`, `<taskId>-2` and so on, and the same request again
    /// gives the same forks. Without it they are named after the task of the VM that is forked, where that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// Length of their leases; without it they end when that of the VM that is forked does.
    #[serde(default, deserialize_with = "whole_or_null", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10_080)]
    pub ttl_minutes: Option<u64>,
}

/// Reply of `POST /instances/{id}/fork`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForkReply {
    /// The VM that was forked.
    pub parent: InstanceId,
    /// How long it was stopped for that, milliseconds.
    pub paused_ms: u64,
    /// The forks, each claimed.
    pub items: Vec<ForkedClaim>,
}

/// A fork, with its claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForkedClaim {
    /// Its task.
    #[schema(required)]
    pub task_id: Option<String>,
    /// As a claim answers.
    pub claim: ClaimReply,
}

/// Body of `POST /instances/{id}/checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "name": "before-upgrade", "note": "tests pass" }))]
pub struct CheckpointRequest {
    /// What it is called; no other checkpoint of the project is.
    pub name: CheckpointName,
    /// A text for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Description>,
}

/// A named checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamedCheckpointItem {
    /// Its project.
    pub project_id: ProjectId,
    /// What it is called.
    pub name: String,
    /// What was written about it.
    #[schema(required)]
    pub note: Option<String>,
    /// What it was made of.
    pub instance_id: InstanceId,
    /// Whose claim that was. Only this user, and admins, can claim from it: its memory may hold personal variables.
    pub owner: String,
    /// What it takes on the disk, without what it is based on.
    pub bytes: u64,
    /// When it was made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Body of `POST /instances/{id}/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "checkpoint": "before-upgrade" }))]
pub struct RestoreRequest {
    /// Which checkpoint of the project.
    pub checkpoint: CheckpointName,
}

/// Reply of `DELETE /projects/{projectId}/checkpoints/{checkpoint}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointDeleted {
    /// Always true.
    pub deleted: bool,
    /// Which.
    pub name: String,
}
