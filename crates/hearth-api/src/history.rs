//! The history of a project: its claims and boots, also when their instances are gone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::claim::ClaimSource;
use crate::explain::MissCause;
use crate::ids::InstanceId;
use crate::instance::Step;
use crate::time;

/// A page of a project's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Claims that were answered, newest first.
    pub claims: Vec<ClaimRecord>,
    /// Instances that were made, or were to be, newest first.
    pub boots: Vec<BootRecord>,
}

/// A claim that was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRecord {
    /// The instance that was claimed.
    pub id: InstanceId,
    /// When.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub claimed_at: Timestamp,
    /// When it ended; `null` while it has not.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Why it ended.
    #[schema(required)]
    pub ended_because: Option<String>,
    /// Whose it was.
    #[schema(required)]
    pub owner: Option<String>,
    /// The task it was claimed for.
    #[schema(required)]
    pub task_id: Option<String>,
    /// Where its VM came from.
    pub source: ClaimSource,
    /// The one cause why it was not warm; `null` when it was.
    #[schema(required)]
    pub cause: Option<MissCause>,
    /// How long it waited, milliseconds.
    pub wait_ms: u64,
    /// From the request to the reply, milliseconds; `null` for copies of a VM in use.
    #[schema(required)]
    pub total_ms: Option<f64>,
    /// The recipe of its VM.
    pub recipe: String,
}

/// An instance that was made, or was to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BootRecord {
    /// The instance.
    pub id: InstanceId,
    /// What it was made for: `pool`, `claim` (one that waited), `test`, `test-uncached`, `renewal` (of the template).
    pub purpose: String,
    /// The recipe.
    pub recipe: String,
    /// When it was ordered.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub ordered_at: Timestamp,
    /// Why it was made.
    #[schema(required)]
    pub reason: Option<String>,
    /// When it became ready or failed; `null` when it did neither.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// `ready` or `failed`; `null` before that.
    #[schema(required)]
    pub outcome: Option<String>,
    /// Why it failed.
    #[schema(required)]
    pub failure: Option<String>,
    /// When its VM began to go.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub gone_at: Option<Timestamp>,
    /// Why.
    #[schema(required)]
    pub gone_because: Option<String>,
    /// Whether its log is kept.
    pub has_log: bool,
}

/// A boot with its log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BootDetail {
    /// The boot.
    pub boot: BootRecord,
    /// Its steps, with what they printed; empty when its log is not kept.
    pub steps: Vec<Step>,
}
