//! SSH into a VM: keys that open it, and connections over a WebSocket. The agent starts an SSH server for each connection; none listens.

use axum::Json;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use hearth_api::error::ErrorCode;
use hearth_api::ids::InstanceId;
use hearth_api::ssh::{AllowSsh, SshAllowed};
use hearth_guest::client::{AgentError, NO_SSH_SERVER};

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::exec::{Inside, answered, enter, usable};
use super::extract::{Body, Path};
use super::ports::{Watched, opened};
use super::socket::websocket;
use crate::secrets::env_file;

/// Let the owner of a key enter a VM by SSH
///
/// For as long as the VM lives; a restart of its system forgets it. The reply says by which keys the VM proves itself.
#[utoipa::path(
    post,
    path = "/instances/{id}/ssh/keys",
    tag = "ports",
    request_body = AllowSsh,
    responses((status = 200, body = SshAllowed, description = "The VM's keys"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn allow_ssh(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Body(body): Body<AllowSsh>,
) -> Result<Json<SshAllowed>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let allowed = answered(&state, &row, agent.allow_ssh(vec![body.public_key])).await?;
    drop(resumed);
    let allowed = allowed.map_err(refused)?;
    Ok(Json(SshAllowed {
        host_keys: allowed.host_keys,
    }))
}

/// Connect to a VM by SSH
///
/// A WebSocket: binary messages are the bytes of the SSH protocol, both ways; the text messages are a `TunnelMessage`, as of a connection to a
/// port. `hearth ssh-proxy` is the client for OpenSSH's `ProxyCommand`.
#[utoipa::path(
    get,
    path = "/instances/{id}/ssh",
    tag = "ports",
    responses((status = 101, description = "The connection"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn open_ssh(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let upgrade = websocket(upgrade, "")?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let watched = Watched::new(&state, &row, resumed);
    let stream = answered(&state, &row, agent.ssh_stream(env_file::PATH)).await?;
    Ok(opened(upgrade, stream.map_err(refused)?, watched))
}

fn refused(error: AgentError) -> ApiError {
    match error {
        AgentError::Refused { status: 404, .. } => ApiError::new(
            ErrorCode::Conflict,
            "the agent in this VM is older than SSH; build the image again, or use `hearth shell`",
        ),
        AgentError::Refused {
            status: NO_SSH_SERVER,
            message,
            ..
        } => ApiError::new(ErrorCode::Conflict, message),
        AgentError::Refused {
            status: 400, message, ..
        } => ApiError::field("publicKey", message),
        AgentError::Refused { message, .. } => ApiError::unavailable(message),
        other => ApiError::unavailable(other.to_string()),
    }
}
