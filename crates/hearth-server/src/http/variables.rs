//! Variables of a project: the shared ones in every VM, and the personal ones of the token's owner in the VMs that owner
//! claims. Values go in and never come back.

use axum::Json;
use axum::extract::State;
use hearth_api::ids::ProjectId;
use hearth_api::page::Items;
use hearth_api::token::Scope;
use hearth_api::values::VariableName;
use hearth_api::variables::{PutVariables, VariableDeleted, VariableItem, VariableKind};
use jiff::Timestamp;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Path};
use super::validate::Faults;
use crate::store::{ProjectRow, VariableOwner};

/// Whose they are, when this caller asks.
fn owner(kind: VariableKind, caller: &Caller) -> VariableOwner<'_> {
    match kind {
        VariableKind::Shared => VariableOwner::Shared,
        VariableKind::Personal => VariableOwner::User(&caller.0.owner),
    }
}

/// The project, for a caller with `scope`. A token that may claim needs no other scope for personal variables.
async fn project(
    kind: VariableKind,
    state: &AppState,
    caller: &Caller,
    id: &ProjectId,
    scope: Scope,
) -> Result<ProjectRow, ApiError> {
    match kind {
        VariableKind::Shared => caller.project(state, id, scope).await,
        VariableKind::Personal => caller.project_by(state, id, &[scope, Scope::Claim]).await,
    }
}

/// List shared variables
///
/// Their values never come back.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/environment-variables/shared",
    tag = "projects",
    responses((status = 200, body = Items<VariableItem>, description = "Their names"))
)]
pub async fn list_shared_variables(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<Items<VariableItem>>, ApiError> {
    list(&state, &caller, &id, VariableKind::Shared).await
}

/// Set shared variables
///
/// Each one is made or replaced, the others stay. They are in every VM of the project, in `/home/.env`.
#[utoipa::path(
    put,
    path = "/projects/{projectId}/environment-variables/shared",
    tag = "projects",
    request_body = PutVariables,
    responses((status = 200, body = Items<VariableItem>, description = "The names of all"))
)]
pub async fn put_shared_variables(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(body): Body<PutVariables>,
) -> Result<Json<Items<VariableItem>>, ApiError> {
    put(&state, &caller, &id, VariableKind::Shared, &body).await
}

/// Remove a shared variable
#[utoipa::path(
    delete,
    path = "/projects/{projectId}/environment-variables/shared/{name}",
    tag = "projects",
    responses((status = 200, body = VariableDeleted, description = "Whether there was one"))
)]
pub async fn delete_shared_variable(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, name)): Path<(ProjectId, String)>,
) -> Result<Json<VariableDeleted>, ApiError> {
    remove(&state, &caller, &id, VariableKind::Shared, name).await
}

/// List your personal variables
///
/// Those of the token's owner. Their values never come back.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/environment-variables/personal",
    tag = "projects",
    responses((status = 200, body = Items<VariableItem>, description = "Their names"))
)]
pub async fn list_personal_variables(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<Items<VariableItem>>, ApiError> {
    list(&state, &caller, &id, VariableKind::Personal).await
}

/// Set personal variables
///
/// Each one is made or replaced, the others stay. They are given to the VMs that the token's owner claims, override shared
/// ones, and are never in a pool's VM.
#[utoipa::path(
    put,
    path = "/projects/{projectId}/environment-variables/personal",
    tag = "projects",
    request_body = PutVariables,
    responses((status = 200, body = Items<VariableItem>, description = "The names of all"))
)]
pub async fn put_personal_variables(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(body): Body<PutVariables>,
) -> Result<Json<Items<VariableItem>>, ApiError> {
    put(&state, &caller, &id, VariableKind::Personal, &body).await
}

/// Remove a personal variable
#[utoipa::path(
    delete,
    path = "/projects/{projectId}/environment-variables/personal/{name}",
    tag = "projects",
    responses((status = 200, body = VariableDeleted, description = "Whether there was one"))
)]
pub async fn delete_personal_variable(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, name)): Path<(ProjectId, String)>,
) -> Result<Json<VariableDeleted>, ApiError> {
    remove(&state, &caller, &id, VariableKind::Personal, name).await
}

async fn list(
    state: &AppState,
    caller: &Caller,
    id: &ProjectId,
    kind: VariableKind,
) -> Result<Json<Items<VariableItem>>, ApiError> {
    let project = project(kind, state, caller, id, Scope::ProjectRead).await?;
    Ok(Json(Items {
        items: state.store().variable_items(&project.id, owner(kind, caller)).await?,
    }))
}

async fn put(
    state: &AppState,
    caller: &Caller,
    id: &ProjectId,
    kind: VariableKind,
    body: &PutVariables,
) -> Result<Json<Items<VariableItem>>, ApiError> {
    let project = project(kind, state, caller, id, Scope::ProjectWrite).await?;
    let mut faults = Faults::default();
    let names = body.variables.iter().enumerate();
    faults.variable_names(names.map(|(at, it)| (format!("variables[{at}].name"), it.name.as_str())));
    faults.finish()?;
    let (store, owner, by) = (state.store(), owner(kind, caller), caller.0.owner.as_str());
    if !store
        .put_variables(&project.id, owner, &body.variables, by, Timestamp::now())
        .await?
    {
        return Err(ApiError::not_found("project"));
    }
    state.wake.wake();
    Ok(Json(Items {
        items: store.variable_items(&project.id, owner).await?,
    }))
}

async fn remove(
    state: &AppState,
    caller: &Caller,
    id: &ProjectId,
    kind: VariableKind,
    name: String,
) -> Result<Json<VariableDeleted>, ApiError> {
    let project = project(kind, state, caller, id, Scope::ProjectWrite).await?;
    if let Err(fault) = VariableName::try_from(name.as_str()) {
        return Err(ApiError::field("name", fault.to_string()));
    }
    let deleted = state
        .store()
        .delete_variable(&project.id, owner(kind, caller), &name)
        .await?;
    state.wake.wake();
    Ok(Json(VariableDeleted { deleted, name }))
}
