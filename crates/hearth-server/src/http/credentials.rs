//! Git credentials of a project: what Hearth fetches its repositories with, and what git in its claimed VMs is given. Secrets go in
//! and never come back.

use axum::Json;
use axum::extract::State;
use hearth_api::credential::{Credential, CredentialDeleted, CredentialItem, CredentialKind, PutCredentials};
use hearth_api::ids::ProjectId;
use hearth_api::page::Items;
use hearth_api::token::Scope;
use hearth_api::values::CredentialHost;
use jiff::Timestamp;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Path};
use super::validate::Faults;
use crate::secrets::key_agent;

/// List git credentials
///
/// Their secrets never come back.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/credentials",
    tag = "projects",
    responses((status = 200, body = Items<CredentialItem>, description = "What is shown of them, by host"))
)]
pub async fn list_credentials(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<Items<CredentialItem>>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    Ok(Json(Items {
        items: state.store().credential_items(&project.id).await?,
    }))
}

/// Set git credentials
///
/// Each one is made or replaced, the others stay. Hearth fetches the project's repositories from these hosts with them, and git in the
/// project's claimed VMs gets them from Hearth each time it needs one: a token that is replaced is used by the next git command.
#[utoipa::path(
    put,
    path = "/projects/{projectId}/credentials",
    tag = "projects",
    request_body = PutCredentials,
    responses((status = 200, body = Items<CredentialItem>, description = "What is shown of all"))
)]
pub async fn put_credentials(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(body): Body<PutCredentials>,
) -> Result<Json<Items<CredentialItem>>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    let checked = check(body.credentials)?;
    let (store, now) = (state.store(), Timestamp::now());
    if !store
        .put_credentials(&project.id, &checked, &caller.0.owner, now)
        .await?
    {
        return Err(ApiError::not_found("project"));
    }
    // What could not be read may be readable now: nothing of before counts against it. A project need not have a pool.
    store.retry_pool(&project.id, now).await?;
    state.watch.credentials_changed(&project.id);
    // With its first credential it fetches for itself: that is to be followed from now on.
    if let (Some(project), Some(pool)) = (store.project(&project.id).await?, store.pool(&project.id).await?) {
        state.watch.follow(&project, &pool);
    }
    state.wake.wake();
    Ok(Json(Items {
        items: store.credential_items(&project.id).await?,
    }))
}

/// Remove the git credentials for a host
///
/// The token and the key. What was fetched with them stays with the project.
#[utoipa::path(
    delete,
    path = "/projects/{projectId}/credentials/{host}",
    tag = "projects",
    responses((status = 200, body = CredentialDeleted, description = "Whether there was one"))
)]
pub async fn delete_credential(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, host)): Path<(ProjectId, String)>,
) -> Result<Json<CredentialDeleted>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    if let Err(fault) = CredentialHost::try_from(host.as_str()) {
        return Err(ApiError::field("host", fault.to_string()));
    }
    let deleted = state.store().delete_credential(&project.id, &host).await?;
    state.wake.wake();
    Ok(Json(CredentialDeleted { deleted, host }))
}

/// The credentials, each with the fingerprint of a key.
fn check(credentials: Vec<Credential>) -> Result<Vec<(Credential, Option<String>)>, ApiError> {
    let mut faults = Faults::default();
    let mut checked = Vec::with_capacity(credentials.len());
    for (at, credential) in credentials.into_iter().enumerate() {
        let path = |field: &str| format!("credentials[{at}].{field}");
        let mut fingerprint = None;
        match credential.kind {
            CredentialKind::Token => {
                let is_word = !credential.secret.chars().any(|c| c.is_whitespace() || c.is_control());
                faults.check(
                    is_word,
                    &path("secret"),
                    "must be a token in one line without blanks; a private key is of the kind `key`",
                );
            }
            CredentialKind::Key => {
                match key_agent::fingerprint(&credential.secret) {
                    Ok(of_key) => fingerprint = Some(of_key),
                    Err(why) => faults.add(path("secret"), why),
                }
                faults.check(
                    credential.username.is_none(),
                    &path("username"),
                    "goes with a token only: with a key it is part of the repository's address",
                );
                faults.check(!credential.allow_http, &path("allowHttp"), "goes with a token only");
            }
        }
        checked.push((credential, fingerprint));
    }
    faults.finish()?;
    Ok(checked)
}
