//! The servers that share the database, and where pools are at home.

use axum::Json;
use axum::extract::State;
use hearth_api::error::ErrorCode;
use hearth_api::ids::ProjectId;
use hearth_api::page::Items;
use hearth_api::server::{PutPoolHome, ServerItem};

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Path};
use crate::store::ServerRow;

/// List the servers of the database
///
/// Those that share one PostgreSQL database; the list is empty where the store is in SQLite, which has one server. For an admin of the
/// installation's first tenant.
#[utoipa::path(
    get,
    path = "/servers",
    tag = "server",
    responses((status = 200, body = Items<ServerItem>, description = "The servers"))
)]
pub async fn list_servers(State(state): State<AppState>, caller: Caller) -> Result<Json<Items<ServerItem>>, ApiError> {
    caller.need_host()?;
    let own = state.store().server();
    let items = state.servers.all().await?;
    Ok(Json(Items {
        items: items.into_iter().map(|row| shown(row, own)).collect(),
    }))
}

/// Give a warm pool another home
///
/// From then on that server makes the pool's VMs and hands them over. Claimed VMs stay where they are; ready ones on the old server are
/// removed. For an admin of the installation's first tenant.
#[utoipa::path(
    put,
    path = "/projects/{projectId}/warm-pool/home",
    tag = "server",
    request_body = PutPoolHome,
    responses((status = 200, body = Items<ServerItem>, description = "The servers as they are now"), (status = 409, description = "refused"))
)]
pub async fn put_pool_home(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(body): Body<PutPoolHome>,
) -> Result<Json<Items<ServerItem>>, ApiError> {
    caller.need_host()?;
    state
        .store()
        .project(&id)
        .await?
        .ok_or_else(|| ApiError::not_found("project"))?;
    if !state.store().is_shared() {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "this installation has one server: its store is in SQLite; `hearth store move` takes it to PostgreSQL",
        ));
    }
    let server = body.server.to_string();
    if !state.servers.move_home(&id, &server).await? {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("no server {server} is alive; `hearth server list` names those that are"),
        ));
    }
    list_servers(State(state), caller).await
}

fn shown(row: ServerRow, own: &str) -> ServerItem {
    ServerItem {
        answers: row.id == own,
        id: row.id,
        place: row.place,
        url: row.url,
        version: row.version,
        alive: row.alive,
        started_at: row.started_at,
        alive_until: row.alive_until,
        pools: row.pools,
        vms: row.vms,
        memory_mib: row.memory_mib,
    }
}
