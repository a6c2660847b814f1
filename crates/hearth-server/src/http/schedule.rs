//! When a pool keeps another number of VMs ready.

use axum::Json;
use axum::extract::State;
use hearth_api::ids::ProjectId;
use hearth_api::schedule::{MAX_WINDOWS, PoolSchedule, PoolScheduleView};
use hearth_api::token::Scope;
use hearth_core::schedule::{Schedule, ScheduleError};
use jiff::Timestamp;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Path};
use super::validate::Faults;
use crate::pools::schedule::in_force;
use crate::store::PoolRow;

/// Get the schedule of a warm pool
///
/// The windows in which the pool keeps another number of VMs ready, and how many it keeps now.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/warm-pool/schedule",
    tag = "warm pool",
    responses((status = 200, body = PoolScheduleView, description = "The windows, and what they come to now"))
)]
pub async fn get_pool_schedule(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<PoolScheduleView>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    Ok(Json(view(state.store().pool(&project.id).await?)))
}

/// Set the schedule of a warm pool
///
/// It replaces the one before; one without windows removes it. The pool keeps its own `targetSize`, which holds outside of every window.
#[utoipa::path(
    put,
    path = "/projects/{projectId}/warm-pool/schedule",
    tag = "warm pool",
    request_body = PoolSchedule,
    responses((status = 200, body = PoolScheduleView, description = "The windows, and what they come to now"))
)]
pub async fn put_pool_schedule(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(schedule): Body<PoolSchedule>,
) -> Result<Json<PoolScheduleView>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    check(&schedule)?;
    let schedule = Some(&schedule).filter(|schedule| !schedule.windows.is_empty());
    let pool = state
        .store()
        .put_schedule(&project.id, schedule, Timestamp::now())
        .await?;
    let pool = pool.ok_or_else(|| ApiError::not_found("project"))?;
    state.wake.wake();
    Ok(Json(view(Some(pool))))
}

fn check(schedule: &PoolSchedule) -> Result<(), ApiError> {
    let mut faults = Faults::default();
    faults.check(schedule.windows.len() <= MAX_WINDOWS, "windows", "must be at most 50");
    match Schedule::parse(schedule) {
        Ok(_) => {}
        Err(error @ ScheduleError::TimeZone(_)) => faults.add("timeZone", error.to_string()),
        Err(ScheduleError::Cron {
            window, field, fault, ..
        }) => {
            faults.add(
                format!("windows[{window}].{field}"),
                format!("is no time in cron's five fields: {fault}"),
            );
        }
    }
    faults.finish()
}

fn view(pool: Option<PoolRow>) -> PoolScheduleView {
    let Some(pool) = pool else {
        return PoolScheduleView {
            time_zone: None,
            windows: Vec::new(),
            target_size: 0,
            own_target_size: 0,
            changes_at: None,
        };
    };
    let now = in_force(pool.config.target_size, pool.schedule.as_ref(), Timestamp::now());
    let (time_zone, windows) = pool
        .schedule
        .map(|schedule| (schedule.time_zone, schedule.windows))
        .unzip();
    PoolScheduleView {
        time_zone,
        windows: windows.unwrap_or_default(),
        target_size: now.target_size,
        own_target_size: pool.config.target_size,
        changes_at: now.until,
    }
}
