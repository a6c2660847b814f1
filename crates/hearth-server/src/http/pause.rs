//! Pausing a claimed VM and resuming it, by its owner. Every other call into it resumes it as well: see [`super::exec::enter`].

use axum::Json;
use axum::extract::State;
use hearth_api::claim::Paused;
use hearth_api::error::ErrorCode;
use hearth_api::ids::InstanceId;
use hearth_drivers::DriverError;
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::claims::own_claim;
use super::error::ApiError;
use super::exec::{need_in_reach, show_life};
use super::extract::{Path, Query};
use crate::store::InstanceRow;
use crate::vms::ended::ended_message;
use crate::vms::pause::{NotPaused, PauseOrder, PausedIn};

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct PauseQuery {
    /// Also when calls are under way in it: they wait until it is resumed.
    #[param(nullable = false, required = false, default = false)]
    force: Option<bool>,
    /// Its memory goes to the disk: it costs no memory either, and takes longer to resume. Calls that `force` does not heed end.
    #[param(nullable = false, required = false, default = false)]
    to_disk: Option<bool>,
}

/// Pause a claimed VM
///
/// Every process in it stops where it is, and costs no processor; memory, disk and open connections stay. The next call into it (a command,
/// a file, a port) resumes it, and so does `resume`. While calls are under way in it the answer is 409, except with `force`. The lease
/// is renewed, and ends as always. A VM that is paused stays so. With `toDisk` it costs no memory either: it goes to a file, and the VM has
/// no process until it is resumed, for which the host needs memory again.
#[utoipa::path(
    post,
    path = "/instances/{id}/pause",
    tag = "claims",
    params(PauseQuery),
    responses((status = 200, body = Paused, description = "It is paused"), (status = 409, description = "refused"))
)]
pub async fn pause_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Query(query): Query<PauseQuery>,
) -> Result<Json<Paused>, ApiError> {
    let row = claimed_and_there(&state, &caller, &id).await?;
    let paused = state
        .pause
        .pause_claimed(
            &id,
            &row.vm,
            PauseOrder {
                force: query.force.unwrap_or(false),
                to_disk: query.to_disk.unwrap_or(false),
                ..PauseOrder::default()
            },
        )
        .await;
    paused.map_err(|error| refusal(error, &id))?;
    tracing::info!(instance = %id, project = %row.project, "paused by its owner");
    show_life(state.store().clone(), id.clone()).await;
    let to_disk = state.pause.paused_in(&row.vm).await == Some(PausedIn::Disk);
    Ok(Json(Paused {
        id,
        paused: true,
        to_disk,
    }))
}

/// Resume a claimed VM
///
/// Its processes continue, and its clock is set. One that runs stays as it is.
#[utoipa::path(
    post,
    path = "/instances/{id}/resume",
    tag = "claims",
    responses((status = 200, body = Paused, description = "It runs"), (status = 409, description = "refused"))
)]
pub async fn resume_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<Paused>, ApiError> {
    let row = claimed_and_there(&state, &caller, &id).await?;
    let resumed = state.pause.enter_claimed(&row.vm).await;
    let (_call, was_paused) = resumed.map_err(|error| refusal(error.into(), &id))?;
    // Something else may have stopped it.
    need_in_reach(&state, &row).await?;
    if was_paused {
        tracing::info!(instance = %id, project = %row.project, "resumed by its owner");
        state.probes.set_clock(&row).await;
        state.pause.clock_is_set(&row.vm);
    }
    show_life(state.store().clone(), id.clone()).await;
    Ok(Json(Paused {
        id,
        paused: false,
        to_disk: false,
    }))
}

/// The caller's own claim, whose VM is handed over and has not ended.
pub async fn claimed_and_there(state: &AppState, caller: &Caller, id: &InstanceId) -> Result<InstanceRow, ApiError> {
    let row = own_claim(state, caller, id).await?;
    if let Some(end) = state.probes.ends().check(&row).await? {
        return Err(ApiError::new(ErrorCode::Conflict, ended_message(&row, &end)));
    }
    let claim = state.store().claim(id).await?;
    if claim.is_some_and(|claim| !claim.handed_over) {
        let why = "this VM is still being handed over; try again when its claim has been answered";
        return Err(ApiError::new(ErrorCode::Conflict, why));
    }
    Ok(row)
}

fn refusal(error: NotPaused, id: &InstanceId) -> ApiError {
    match error {
        NotPaused::InUse(calls) => {
            let what = match calls {
                1 => "1 call is".to_owned(),
                calls => format!("{calls} calls are"),
            };
            let why = format!(
                "{what} under way in this VM (commands, terminals, files, connections to ports); end them first, or pause it with \
                 `force` (`hearth pause {id} --force`): then they wait until it is resumed, or end if it goes to the disk"
            );
            ApiError::new(ErrorCode::Conflict, why)
        }
        NotPaused::NotClaimed => ApiError::not_found("instance"),
        NotPaused::Driver(error @ DriverError::Permanent { .. }) => {
            ApiError::new(ErrorCode::Conflict, error.to_string())
        }
        NotPaused::Driver(error) => ApiError::unavailable(error.to_string()),
        NotPaused::Store(error) => error.into(),
    }
}
