//! The warm pool of a project.

use axum::Json;
use axum::extract::State;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::pool::{ClearReply, ClearRequest, PatchPool, PatchPoolReply, PoolView, Status, TestReply, TestRequest};
use hearth_api::token::Scope;
use jiff::Timestamp;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, OptionalBody, Path};
use super::validate::Faults;
use crate::store::Store;

async fn status(state: &AppState, project: &ProjectId) -> Result<Status, ApiError> {
    Ok(state
        .store()
        .pool_status(project, Store::failed_window(Timestamp::now()))
        .await?)
}

pub async fn get_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<PoolView>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let pool = state.store().pool(&project.id).await?;
    let (config, metadata) = pool.map(|pool| (pool.config, pool.metadata)).unzip();
    Ok(Json(PoolView {
        allowed: true,
        config,
        status: status(&state, &project.id).await?,
        metadata,
    }))
}

pub async fn patch_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(patch): Body<PatchPool>,
) -> Result<Json<PatchPoolReply>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    let mut faults = Faults::default();
    faults.pool(&patch);
    faults.finish()?;
    let pool = state.store().change_pool(&project.id, &patch, Timestamp::now()).await?;
    let pool = pool.ok_or_else(|| ApiError::not_found("project"))?;
    state.reconciler.wake();
    Ok(Json(PatchPoolReply {
        config: Some(pool.config),
        status: status(&state, &project.id).await?,
    }))
}

pub async fn test_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    OptionalBody(body): OptionalBody<TestRequest>,
) -> Result<Json<TestReply>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    if body.setup_commands.is_some() {
        let change = PatchPool {
            setup_commands: body.setup_commands,
            ..PatchPool::default()
        };
        let mut faults = Faults::default();
        faults.pool(&change);
        faults.finish()?;
        let pool = state
            .store()
            .change_pool(&project.id, &change, Timestamp::now())
            .await?;
        pool.ok_or_else(|| ApiError::not_found("project"))?;
    }
    let id = InstanceId::generate();
    state.reconciler.order_instance(&id, &project, true, false).await?;
    Ok(Json(TestReply { id }))
}

pub async fn clear_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    OptionalBody(body): OptionalBody<ClearRequest>,
) -> Result<Json<ClearReply>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    let enabled = state
        .store()
        .pool(&project.id)
        .await?
        .is_some_and(|pool| pool.config.enabled);
    if body.replenish == Some(true) && !enabled {
        return Err(ApiError::field(
            "replenish",
            "the pool is disabled: enable it first, or clear without replenishing",
        ));
    }
    let cleared = state.store().clear_instances(&project.id, Timestamp::now()).await?;
    state.reconciler.wake();
    Ok(Json(ClearReply {
        cleared: cleared.len() as u64,
        status: status(&state, &project.id).await?,
    }))
}
