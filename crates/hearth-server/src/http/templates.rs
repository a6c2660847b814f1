//! Templates and other checkpoints.

use axum::Json;
use axum::extract::State;
use hearth_api::template::{CheckpointFault, CheckpointItem, TemplateList, TemplatesVerified};
use jiff::{SignedDuration, Timestamp};

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use crate::templates::gc::{KeptCheckpoint, STAGE_LABEL};

/// Faults are shown up to this length.
const FAULTS_TOLD: SignedDuration = SignedDuration::from_hours(24);

/// List templates and other checkpoints
///
/// Frozen VMs that others are forked from, and those that were found damaged.
#[utoipa::path(
    get,
    path = "/templates",
    tag = "server",
    responses((status = 200, body = TemplateList, description = "All of this host"))
)]
pub async fn list_templates(State(state): State<AppState>, caller: Caller) -> Result<Json<TemplateList>, ApiError> {
    caller.need_host()?;
    let items = state.gc.kept().await?;
    let (disk_bytes, disk_limit_bytes) = state.gc.disk();
    let faults = state.store().checkpoint_faults(Timestamp::now() - FAULTS_TOLD).await?;
    Ok(Json(TemplateList {
        items: items.into_iter().map(to_item).collect(),
        disk_bytes,
        disk_limit_bytes,
        faults: faults
            .into_iter()
            .map(|fault| CheckpointFault {
                key: fault.key.to_string(),
                project_id: fault.project,
                reason: fault.reason,
                at: fault.at,
            })
            .collect(),
    }))
}

fn to_item(kept: KeptCheckpoint) -> CheckpointItem {
    let info = kept.info;
    CheckpointItem {
        key: info.key.to_string(),
        parent: info.parent.map(|parent| parent.to_string()),
        project_id: kept.project,
        stage: info.labels.get(STAGE_LABEL).cloned().unwrap_or_default(),
        recipes: kept.recipes,
        needed: kept.needed,
        bytes: info.bytes,
        created_at: info.created,
        last_used_at: info.last_used,
    }
}

/// Check every byte of every checkpoint
///
/// A damaged one is not used any more and is built again when it is needed; ready VMs that were forked from it are replaced.
#[utoipa::path(
    post,
    path = "/templates/verify",
    tag = "server",
    responses((status = 200, body = TemplatesVerified, description = "What was found"))
)]
pub async fn verify_templates(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<Json<TemplatesVerified>, ApiError> {
    caller.need_host()?;
    let verified = state.gc.verify().await?;
    Ok(Json(TemplatesVerified {
        checked: verified.checked as u64,
        damaged: verified.faults.len() as u64,
    }))
}
