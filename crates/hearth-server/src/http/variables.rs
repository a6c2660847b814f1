//! Shared variables of a project. Values go in and never come back.

use axum::Json;
use axum::extract::State;
use hearth_api::ids::ProjectId;
use hearth_api::page::Items;
use hearth_api::token::Scope;
use hearth_api::variables::{PutVariables, VariableDeleted, VariableItem};
use jiff::Timestamp;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Path};
use super::validate::Faults;

pub async fn list_shared_variables(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<Items<VariableItem>>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    Ok(Json(Items {
        items: state.store().shared_variable_items(&project.id).await?,
    }))
}

pub async fn put_shared_variables(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(put): Body<PutVariables>,
) -> Result<Json<Items<VariableItem>>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    let mut faults = Faults::default();
    faults.variables(&put);
    faults.finish()?;
    let (store, by) = (state.store(), caller.0.owner.as_str());
    if !store
        .put_shared_variables(&project.id, &put.variables, by, Timestamp::now())
        .await?
    {
        return Err(ApiError::not_found("project"));
    }
    state.reconciler.wake();
    Ok(Json(Items {
        items: store.shared_variable_items(&project.id).await?,
    }))
}

pub async fn delete_shared_variable(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, name)): Path<(ProjectId, String)>,
) -> Result<Json<VariableDeleted>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    let deleted = state.store().delete_shared_variable(&project.id, &name).await?;
    state.reconciler.wake();
    Ok(Json(VariableDeleted { deleted, name }))
}
