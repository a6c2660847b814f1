//! Templates and other checkpoints, and why a pool is as it is.

use axum::Json;
use axum::extract::State;
use hearth_api::ids::ProjectId;
use hearth_api::template::{
    CheckpointFault, CheckpointItem, Condition, HostUse, InstanceExplained, PoolExplained, TemplateInfo, TemplateList,
    TemplatesVerified,
};
use hearth_api::token::Scope;
use jiff::{SignedDuration, Timestamp};

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::Path;
use crate::provision::blueprint::checkouts;
use crate::reconcile::KeptCheckpoint;
use crate::store::{PoolRow, ProjectRow};

/// Faults are told this long.
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
    let items = state.reconciler.kept().await?;
    let (disk_bytes, disk_limit_bytes) = state.reconciler.template_disk();
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
        stage: info.labels.get("stage").cloned().unwrap_or_default(),
        recipes: kept.recipes,
        needed: kept.needed,
        bytes: info.bytes,
        created_at: info.created,
        last_used_at: info.last_used,
    }
}

/// Look at every byte of every checkpoint
///
/// A damaged one is not used any more and is made anew when it is needed; ready VMs that were forked from it are replaced.
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
    let verified = state.reconciler.verify().await?;
    Ok(Json(TemplatesVerified {
        checked: verified.checked as u64,
        damaged: verified.faults.len() as u64,
    }))
}

/// Explain the warm pool
///
/// What holds it back, in words and figures; its template; each instance.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/warm-pool/explain",
    tag = "warm pool",
    responses((status = 200, body = PoolExplained, description = "Why the pool is as it is"))
)]
pub async fn explain_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<PoolExplained>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let (store, now) = (state.store(), Timestamp::now());
    let pool = store.pool(&project.id).await?;
    let recipe = state.reconciler.context().wanted(&project, pool.as_ref()).await?;
    let template = store.template(&project.id, &recipe).await?;
    let held = state.reconciler.held(&project.id);
    let not_followed = not_followed(&state, &project, pool.as_ref());
    let rows = store.all_instances().await?;
    let host = state.reconciler.host_use(&rows);
    let (template_disk_bytes, max_template_disk_bytes) = state.reconciler.template_disk();
    let instances = rows.iter().filter(|row| row.project == project.id && !row.is_build);
    Ok(Json(PoolExplained {
        conditions: held
            .into_iter()
            .map(|held| Condition {
                kind: held.kind.to_owned(),
                since: held.since,
                message: held.message,
            })
            .chain(not_followed)
            .collect(),
        template: template.map(|template| TemplateInfo {
            key: template.key.to_string(),
            created_at: template.created_at,
        }),
        host: HostUse {
            vms: host.vms as u64,
            max_vms: host.max_vms as u64,
            memory_mib: host.memory_mib,
            max_memory_mib: host.max_memory_mib,
            template_disk_bytes,
            max_template_disk_bytes,
        },
        instances: instances
            .filter_map(|row| {
                Some(InstanceExplained {
                    id: row.id.clone(),
                    status: row.status()?,
                    is_test: row.is_test,
                    recipe: row.recipe.clone(),
                    current: row.recipe == recipe,
                    memory_mib: row.counts_mib(),
                    since_ms: u64::try_from(now.duration_since(row.state_since).as_millis()).unwrap_or_default(),
                })
            })
            .collect(),
        recipe,
    }))
}

/// Repositories and branches of the pool that cannot be followed.
fn not_followed(state: &AppState, project: &ProjectRow, pool: Option<&PoolRow>) -> Vec<Condition> {
    let faults = checkouts(project, pool)
        .into_iter()
        .filter_map(|checkout| state.watch.fault(&checkout.url, &checkout.branch));
    let conditions = faults.map(|fault| Condition {
        kind: if fault.branch.is_some() {
            "BranchMissing".to_owned()
        } else {
            "RepositoryUnreachable".to_owned()
        },
        since: fault.since,
        message: fault.message,
    });
    conditions.collect()
}
