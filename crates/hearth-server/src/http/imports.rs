//! What a project's repositories say about their set-up to others than Hearth.

use axum::Json;
use axum::extract::State;
use hearth_api::ids::ProjectId;
use hearth_api::setup::{ImportedRepository, SetupImport};
use hearth_api::token::Scope;
use hearth_core::checkout::Checkout;
use hearth_core::redact::Redactor;
use hearth_import::{Imported, OwnSetUp};

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::Path;
use crate::repos::checkouts::checkouts;
use crate::repos::imports;
use crate::secrets::redactors;

/// Read what the repositories say
///
/// `devcontainer.json`, `copilot-setup-steps.yml`, `.cursor/environment.json` or a Dockerfile, the first of these that is there, else
/// `mise.toml`, `.tool-versions` and lock files, at the newest commit of each branch. Nothing is run or saved: `setupCommands` is
/// what a pool takes, `scripts` what the setup object takes. Test boots of a project without a set-up do the same by themselves.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/setup/import",
    tag = "projects",
    responses((status = 200, body = SetupImport, description = "What was read"))
)]
pub async fn import_setup(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<SetupImport>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let pool = state.store().pool(&id).await?;
    let checkouts = checkouts(&project, pool.as_ref());
    let redactor = redactors::of_project(state.store(), &id).await?;
    let read = imports::of_checkouts(&state.mirrors, state.command_timeout, &checkouts).await;
    let repositories = checkouts.iter().zip(read);
    let repositories = repositories.map(|(checkout, read)| shown(checkout, read, &redactor));
    Ok(Json(SetupImport {
        repositories: repositories.collect(),
    }))
}

fn shown(checkout: &Checkout, read: Result<Imported, String>, redactor: &Redactor) -> ImportedRepository {
    let (imported, mut problem) = match read {
        Ok(imported) => (imported, None),
        Err(why) => (Imported::default(), Some(why)),
    };
    let own = imported.own_set_up(&checkout.path).unwrap_or_else(|why| {
        problem = Some(why);
        OwnSetUp::default()
    });
    let told = |taken| {
        let lines = imports::told(&imported, taken, redactor).into_iter();
        lines.map(String::from).collect()
    };
    ImportedRepository {
        repository: checkout.repo_full_name.clone(),
        branch: checkout.branch.clone(),
        taken: told(true),
        not_taken: told(false),
        files: imported.files.clone(),
        setup_commands: own.commands,
        scripts: own.scripts,
        vm_size: own.vm_size,
        problem: problem.map(|why| redactor.redact(&why).to_string()),
    }
}
