//! Look-ups for people: a project by its name, an instance by the beginning of its id or by its task, and who has what claimed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{InstanceId, ProjectId};
use crate::instance::{InstanceStatus, Unresponsive};
use crate::time;

/// The text that stands for the VM that the token claimed last.
pub const LAST: &str = "last";

/// A project that a text may mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProjectFound {
    /// Its id.
    pub id: ProjectId,
    /// Its name.
    pub name: String,
}

/// An instance that a text may mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceFound {
    /// Its id.
    pub id: InstanceId,
    /// Its project.
    pub project_id: ProjectId,
    /// The project's name.
    pub project_name: String,
    /// Its state; `null` when the instance is gone and only its claim is recorded.
    #[schema(required)]
    pub status: Option<InstanceStatus>,
    /// The task that it was claimed for.
    #[schema(required)]
    pub task_id: Option<String>,
    /// When it was claimed.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub claimed_at: Option<Timestamp>,
}

/// A claim that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimItem {
    /// The claimed instance.
    pub id: InstanceId,
    /// Its project.
    pub project_id: ProjectId,
    /// The project's name.
    pub project_name: String,
    /// The task that it was claimed for.
    #[schema(required)]
    pub task_id: Option<String>,
    /// Whose token claimed it.
    #[schema(required)]
    pub owner: Option<String>,
    /// When it was claimed.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub claimed_at: Timestamp,
    /// End of the lease.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// So many minutes before its end the lease is warned of; 0: not at all.
    #[serde(default)]
    #[schema(required)]
    pub lease_warning_minutes: u32,
    /// The lease ends within that time.
    #[serde(default)]
    #[schema(required)]
    pub lease_ends_soon: bool,
    /// Its VM is there and does not answer; `null` while it does, as far as is known.
    #[serde(default)]
    #[schema(required)]
    pub unresponsive: Option<Unresponsive>,
    /// Its VM is paused: it costs no processor, and everything in it stays. The next call into it resumes it.
    #[serde(default)]
    #[schema(required)]
    pub paused: bool,
    /// It is paused to the disk: it costs no memory either.
    #[serde(default)]
    #[schema(required)]
    pub paused_to_disk: bool,
    /// Why Hearth paused it; `null` when it is not paused, or its owner wanted it.
    #[serde(default)]
    #[schema(required)]
    pub paused_because: Option<String>,
    /// When it was last noticed that the VM had restarted since it was made: what ran in it then does not run any more.
    #[serde(default, with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub rebooted_at: Option<Timestamp>,
    /// When it was noticed that the VM had ended, its process on the host being gone; `null` while it is there. The claim stays until it
    /// is released.
    #[serde(default, with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub vm_ended_at: Option<Timestamp>,
    /// Why it ended.
    #[serde(default)]
    #[schema(required)]
    pub vm_ended_because: Option<String>,
}
