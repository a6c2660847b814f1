//! Templates and other checkpoints: frozen VMs that others are forked from.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{InstanceId, ProjectId};
use crate::instance::InstanceStatus;
use crate::time;

/// Reply of `GET /templates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateList {
    /// Every checkpoint, least recently used first.
    pub items: Vec<CheckpointItem>,
    /// What they take on the disk together.
    pub disk_bytes: u64,
    /// What they may take. Those that a pool needs stay whatever they take.
    pub disk_limit_bytes: u64,
    /// Those that were found damaged within 24 h, newest first.
    pub faults: Vec<CheckpointFault>,
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointItem {
    /// Its name: a hash over everything that decides what it holds.
    pub key: String,
    /// The checkpoint it goes on from.
    #[schema(required)]
    pub parent: Option<String>,
    /// Whose; `null` for a base, which all projects share.
    #[schema(required)]
    pub project_id: Option<ProjectId>,
    /// After which stage of a set-up it was made.
    pub stage: String,
    /// Recipes whose template it is.
    pub recipes: Vec<String>,
    /// An enabled pool's template is it, or lies on it.
    pub needed: bool,
    /// What it takes on the disk, without what it lies on.
    pub bytes: u64,
    /// When it was made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last forked.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub last_used_at: Timestamp,
}

/// A checkpoint that was found damaged. It is not used any more, and made anew when it is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointFault {
    /// Which.
    pub key: String,
    /// Whose; `null` for a base.
    #[schema(required)]
    pub project_id: Option<ProjectId>,
    /// What was wrong.
    pub reason: String,
    /// When it was found.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// Reply of `POST /templates/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplatesVerified {
    /// How many were looked at, every byte.
    pub checked: u64,
    /// How many of them were damaged; `GET /templates` says which, and how.
    pub damaged: u64,
}

/// Reply of `GET …/warm-pool/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolExplained {
    /// The recipe that new instances are made by.
    pub recipe: String,
    /// What holds the pool back; empty when nothing does.
    pub conditions: Vec<Condition>,
    /// The checkpoint that instances are forked from; `null` until it is made.
    #[schema(required)]
    pub template: Option<TemplateInfo>,
    /// What this host may be asked for, and what is used of it, by all pools together.
    pub host: HostUse,
    /// Every instance.
    pub instances: Vec<InstanceExplained>,
}

/// Something that holds a pool back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// Its name: `CapacityLimited`, `BreakerOpen`, `HostTrouble`, `RepositoryUnreachable`, `BranchMissing`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Since when.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// For a person: what, and what to do.
    pub message: String,
}

/// A pool's template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateInfo {
    /// Its checkpoint.
    pub key: String,
    /// When it was made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// What this host may be asked for, and what is used of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostUse {
    /// VMs that exist.
    pub vms: u64,
    /// VMs that may exist.
    pub max_vms: u64,
    /// Memory that they count with, MiB: measured for VMs at rest, the whole size for others.
    pub memory_mib: u64,
    /// Memory that they may have, MiB.
    pub max_memory_mib: u64,
    /// What checkpoints take on the disk.
    pub template_disk_bytes: u64,
    /// What they may take.
    pub max_template_disk_bytes: u64,
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
    /// Memory that it counts with, MiB.
    pub memory_mib: u64,
    /// Milliseconds since it came into this state.
    pub since_ms: u64,
}
