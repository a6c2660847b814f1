//! Templates and other checkpoints: frozen VMs that others are forked from.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::ProjectId;
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
    /// Its parent: the checkpoint that its disk is a layer on.
    #[schema(required)]
    pub parent: Option<String>,
    /// Its project; `null` for a base, which all projects share.
    #[schema(required)]
    pub project_id: Option<ProjectId>,
    /// After which stage of a build it was made: `base`, `clone_repo 1`, `warm_pool_setup 3`.
    pub stage: String,
    /// Recipes whose template it is.
    pub recipes: Vec<String>,
    /// It is an enabled pool's template, has a name that a person gave it, or is a parent of such a one.
    pub needed: bool,
    /// What it takes on the disk, without its parents.
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

/// A checkpoint that was found damaged. It is not used any more, and built again when it is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointFault {
    /// Which.
    pub key: String,
    /// Its project; `null` for a base.
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
    /// How many were checked, every byte.
    pub checked: u64,
    /// How many of them were damaged; `GET /templates` says which, and how.
    pub damaged: u64,
}
