//! The warm pool of a project.

use axum::Json;
use axum::extract::State;
use hearth_api::error::ErrorCode;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::pool::{
    ClearReply, ClearRequest, PatchPool, PatchPoolReply, PoolView, RetryReply, Status, TestReply, TestRequest,
};
use hearth_api::token::Scope;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, OptionalBody, Path, Query};
use crate::pools::orders::Order;
use crate::store::{ProjectRow, Store};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TestQuery {
    /// `false` runs every step, whatever is cached.
    #[param(nullable = false, default = true)]
    cache: Option<bool>,
}

/// Whether the project's own limit leaves room for a pool.
fn allowed(project: &ProjectRow) -> bool {
    project.max_vms != Some(0)
}

pub fn need_allowed(project: &ProjectRow) -> Result<(), ApiError> {
    if allowed(project) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Forbidden,
        "this project may have no VMs: its `maxVms` is 0",
    ))
}

async fn status(state: &AppState, project: &ProjectId) -> Result<Status, ApiError> {
    Ok(state
        .store()
        .pool_status(project, Store::failed_window(Timestamp::now()))
        .await?)
}

/// Get the warm pool
///
/// `config` is `null` until the pool is first configured.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/warm-pool",
    tag = "warm pool",
    responses((status = 200, body = PoolView, description = "The configuration, and how far the pool is filled"))
)]
pub async fn get_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<PoolView>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let pool = state.store().pool(&project.id).await?;
    let (config, metadata) = pool.map(|pool| (pool.config, pool.metadata)).unzip();
    Ok(Json(PoolView {
        allowed: allowed(&project),
        config,
        status: status(&state, &project.id).await?,
        metadata,
    }))
}

/// Configure the warm pool
///
/// The first PATCH makes the pool, disabled and with a target of 1 unless it says otherwise. An absent field stays as it
/// is; `null` clears `branch` and `setupCommands`.
#[utoipa::path(
    patch,
    path = "/projects/{projectId}/warm-pool",
    tag = "warm pool",
    request_body = PatchPool,
    responses((status = 200, body = PatchPoolReply, description = "The configuration as it is now"))
)]
pub async fn patch_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(patch): Body<PatchPool>,
) -> Result<Json<PatchPoolReply>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    need_allowed(&project)?;
    if let (Some(most), Some(wanted)) = (caller.0.max_vms, patch.target_size)
        && wanted > i64::from(most)
    {
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            format!("this token may have {most} VMs at once (`maxVms`): set a `targetSize` of at most that"),
        ));
    }
    let pool = state.store().change_pool(&project.id, &patch, Timestamp::now()).await?;
    let pool = pool.ok_or_else(|| ApiError::not_found("project"))?;
    state.watch.follow(&project, &pool);
    state.wake.wake();
    Ok(Json(PatchPoolReply {
        config: Some(pool.config),
        status: status(&state, &project.id).await?,
    }))
}

/// Test-boot the set-up
///
/// Starts one VM from the current configuration; poll its instance. Given commands are saved to the pool first. Works
/// while the pool is disabled. The VM is never handed out and is deleted 15 minutes after the boot has ended; its record
/// stays readable for 24 hours.
#[utoipa::path(
    post,
    path = "/projects/{projectId}/warm-pool/test",
    tag = "warm pool",
    params(TestQuery),
    request_body(content = Option<TestRequest>),
    responses((status = 200, body = TestReply, description = "The instance to poll"))
)]
pub async fn test_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Query(query): Query<TestQuery>,
    OptionalBody(body): OptionalBody<TestRequest>,
) -> Result<Json<TestReply>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    need_allowed(&project)?;
    if body.setup_commands.is_some() {
        let change = PatchPool {
            setup_commands: body.setup_commands,
            ..PatchPool::default()
        };
        let pool = state
            .store()
            .change_pool(&project.id, &change, Timestamp::now())
            .await?;
        pool.ok_or_else(|| ApiError::not_found("project"))?;
    }
    let id = InstanceId::generate();
    let order = Order::Test {
        use_cache: query.cache.unwrap_or(true),
    };
    state.orders.order_instance(&id, &project, order).await?;
    Ok(Json(TestReply { id }))
}

/// Clear the warm pool
///
/// Removes every provisioning, ready and failed instance and every test instance, VM and record. Claimed ones are left
/// alone.
#[utoipa::path(
    post,
    path = "/projects/{projectId}/warm-pool/clear",
    tag = "warm pool",
    request_body(content = Option<ClearRequest>),
    responses((status = 200, body = ClearReply, description = "How many were removed"))
)]
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
    state.wake.wake();
    Ok(Json(ClearReply {
        cleared: cleared.len() as u64,
        status: status(&state, &project.id).await?,
    }))
}

/// Try the set-up again
///
/// Earlier failures no longer count: what waits because of them is tried at once.
#[utoipa::path(
    post,
    path = "/projects/{projectId}/warm-pool/retry",
    tag = "warm pool",
    responses((status = 200, body = RetryReply, description = "It is tried again"), (status = 409, description = "refused"))
)]
pub async fn retry_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<RetryReply>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    if !state.store().retry_pool(&project.id, Timestamp::now()).await? {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "this project has no warm pool yet; configure it with `PATCH …/warm-pool`",
        ));
    }
    state.wake.wake();
    Ok(Json(RetryReply {
        status: status(&state, &project.id).await?,
    }))
}
