//! The history of a project.

use axum::Json;
use axum::extract::State;
use hearth_api::history::{BootDetail, History};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::token::Scope;
use hearth_api::values::TaskId;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Path, Query};
use crate::history::unpacked;
use crate::store::HistoryFilter;

/// Records of each list when nothing else is asked for.
const DEFAULT_LIMIT: u32 = 50;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Most records of each list; 50 when absent.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = json!(DEFAULT_LIMIT))]
    limit: Option<u32>,
    /// Only claims and boots that began before then.
    #[param(nullable = false, required = false, value_type = String, format = DateTime)]
    before: Option<Timestamp>,
    /// Only claims that were not warm, and boots that failed.
    #[param(nullable = false, required = false, default = false)]
    troubled: Option<bool>,
    /// Only those with this text in an instance's id, a task, an owner or a failure.
    #[param(nullable = false)]
    text: Option<TaskId>,
}

/// Get a project's history
///
/// Its claims, each with the one cause if it was not warm, and its boots, newest first, also when their instances are gone. They are kept by
/// age and size, as the server was started.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/history",
    tag = "projects",
    params(HistoryQuery),
    responses((status = 200, body = History, description = "The history"))
)]
pub async fn get_history(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<History>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let filter = HistoryFilter {
        project: &project.id,
        before: query.before,
        troubled: query.troubled.unwrap_or(false),
        text: query.text.as_deref(),
        limit: query.limit.unwrap_or(DEFAULT_LIMIT),
    };
    let (claims, boots) = tokio::try_join!(state.store().claim_records(filter), state.store().boot_records(filter))?;
    Ok(Json(History { claims, boots }))
}

/// Get a boot of a project's history
///
/// With its steps and what they printed, also when its instance is gone.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/history/{id}",
    tag = "projects",
    responses((status = 200, body = BootDetail, description = "The boot"))
)]
pub async fn get_history_boot(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, instance)): Path<(ProjectId, InstanceId)>,
) -> Result<Json<BootDetail>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let found = state.store().boot_record(&project.id, &instance).await?;
    let (boot, log) = found.ok_or_else(|| ApiError::not_found("boot in the history"))?;
    let steps = match log.as_deref().map(unpacked).transpose() {
        Ok(steps) => steps.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, instance = %instance, "a log of the history cannot be read");
            Vec::new()
        }
    };
    Ok(Json(BootDetail { boot, steps }))
}
