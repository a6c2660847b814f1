//! Logs inside a VM: the list, and the text of one, which comes from the agent as it is.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use hearth_api::error::ErrorCode;
use hearth_api::ids::InstanceId;
use hearth_api::log::{InstanceLog, LogKind};
use hearth_api::page::Items;
use hearth_guest::LogEntry;
use hearth_guest::client::AgentError;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::exec::{Inside, answered, enter, refused, usable};
use super::extract::{Path, Query};

/// What an agent answers to a path, or a log, that it does not know.
const UNKNOWN: u16 = 404;

/// The logs in a VM
///
/// Those of background set-up commands (`/var/log/hearth/NAME.log` in the VM), and those of processes that commands left running:
/// what they print after their command has ended is kept in a log of the newest 1 to 2 MiB. They are gone with the VM.
#[utoipa::path(
    get,
    path = "/instances/{id}/logs",
    tag = "claims",
    responses((status = 200, body = Items<InstanceLog>, description = "All of them"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn list_instance_logs(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<Items<InstanceLog>>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let logs = answered(&state, &row, agent.logs()).await?;
    drop(resumed);
    let logs = logs.map_err(|error| match error {
        AgentError::Refused { status: UNKNOWN, .. } => ApiError::new(
            ErrorCode::Conflict,
            "the agent in this VM is older than logs; read the files of /var/log/hearth with exec, and build the image again",
        ),
        other => refused(&other),
    })?;
    Ok(Json(Items {
        items: logs.into_iter().map(shown).collect(),
    }))
}

fn shown(log: LogEntry) -> InstanceLog {
    InstanceLog {
        name: log.name,
        kind: match log.kind {
            hearth_guest::LogKind::Setup => LogKind::Setup,
            hearth_guest::LogKind::Exec => LogKind::Exec,
        },
        command: log.command,
        bytes: log.bytes,
        dropped_bytes: log.dropped_bytes,
        open: log.open,
        updated_at: log.changed_unix_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Also what will be written, until no process holds the log open any more.
    #[param(nullable = false, required = false, default = false)]
    follow: Option<bool>,
}

/// Read a log in a VM
///
/// Its bytes as they were printed, from the first one that is kept.
#[utoipa::path(
    get,
    path = "/instances/{id}/logs/{log}",
    tag = "claims",
    params(LogQuery),
    responses((status = 200, content((String = "application/octet-stream")), description = "Its text"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn read_instance_log(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, log)): Path<(InstanceId, String)>,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let text = answered(&state, &row, agent.read_log(&log, query.follow.unwrap_or(false))).await?;
    let text = text.map_err(|error| match error {
        AgentError::Refused { status: UNKNOWN, .. } => {
            ApiError::new(ErrorCode::NotFound, "there is no such log in this VM")
        }
        other => refused(&other),
    })?;
    Ok((
        [(header::CONTENT_TYPE, "application/octet-stream")],
        Inside::body(resumed, text),
    )
        .into_response())
}
