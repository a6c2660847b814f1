//! The setup object of a project.

use axum::Json;
use axum::extract::State;
use hearth_api::ids::ProjectId;
use hearth_api::setup::{LegacyHooks, LegacyStatus, RepoSetup, Scripts, SetupBody, SetupSource, SetupView};
use hearth_api::token::Scope;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Path, Query};
use super::validate::Faults;
use crate::repos::legacy_hooks::{LegacyFound, find_legacy_hooks};
use crate::store::{ProjectRow, RepoSource, StoreError};

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct SetupQuery {
    /// Confirms that the saved setup object replaces hooks in `.capy/settings.json` that are active now.
    #[serde(default)]
    #[param(nullable = false)]
    replace_legacy_hooks: Option<bool>,
}

/// Get the setup object
///
/// `source` says what future VMs are set up by. Without a saved object, `setup` is what the project has today.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/setup",
    tag = "projects",
    responses((status = 200, body = SetupView, description = "The setup object"))
)]
pub async fn get_setup(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<SetupView>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let found = find_legacy_hooks(&state.mirrors, state.command_timeout, &project).await;
    Ok(Json(view(&project, found)))
}

/// Save the setup object
///
/// It holds for future VMs at once. `repositories` replaces what was saved; an absent `vmSize` or `hooks` stays. While hooks
/// in a repository's `.capy/settings.json` are active, saving needs `replaceLegacyHooks=true`: the object replaces them.
#[utoipa::path(
    patch,
    path = "/projects/{projectId}/setup",
    tag = "projects",
    params(SetupQuery),
    request_body = SetupBody,
    responses((status = 200, body = SetupView, description = "The setup object as it is now"))
)]
pub async fn patch_setup(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Query(query): Query<SetupQuery>,
    Body(body): Body<SetupBody>,
) -> Result<Json<SetupView>, ApiError> {
    let mut project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    let confirmed = query.replace_legacy_hooks == Some(true);
    for _ in 0..LOOKS {
        // Git is asked outside of the transaction, about the branches as they will be.
        set_branches(&body, &mut project)?;
        let found = find_legacy_hooks(&state.mirrors, state.command_timeout, &project).await;
        let looked_at = project.repos;
        let change = |row: &mut ProjectRow| {
            set_branches(&body, row)?;
            if row.repos != looked_at {
                return Err(Refused::Moved(Box::new(row.clone())));
            }
            Ok(save(body.clone(), confirmed, &found, row)?)
        };
        match state
            .store()
            .change_project(&project.id, Timestamp::now(), change)
            .await
        {
            Ok(Some(row)) => {
                state.wake.wake();
                return Ok(Json(view(&row, found)));
            }
            Ok(None) => return Err(ApiError::not_found("project")),
            Err(Refused::Moved(row)) => project = *row,
            Err(Refused::Error(error)) => return Err(error),
        }
    }
    Err(ApiError::unavailable(
        "the project's repositories are being changed all the time; try again",
    ))
}

/// How often repositories are looked at while others change them meanwhile.
const LOOKS: usize = 3;

/// Why a setup object was not saved.
enum Refused {
    /// The repositories are not those that were looked at; this is the project now.
    Moved(Box<ProjectRow>),
    Error(ApiError),
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Error(error.into())
    }
}

/// One truth for the branches: the project's.
fn set_branches(body: &SetupBody, project: &mut ProjectRow) -> Result<(), ApiError> {
    let mut faults = Faults::default();
    for (at, wanted) in body.repositories.iter().enumerate() {
        let path = format!("repositories[{at}].repository");
        let known = |repo: &&mut RepoSource| repo.repo_full_name == wanted.repository;
        match project.repos.iter_mut().find(known) {
            Some(repo) => repo.branch.clone_from(&wanted.branch),
            None => faults.add(path.clone(), "is no repository of this project"),
        }
        let earlier = &body.repositories[..at];
        let twice = earlier.iter().any(|other| other.repository == wanted.repository);
        faults.check(!twice, &path, "is in the list twice");
    }
    faults.finish()
}

fn save(body: SetupBody, confirmed: bool, found: &LegacyFound, project: &mut ProjectRow) -> Result<(), ApiError> {
    let active = project.setup.is_none() && !found.repositories.is_empty();
    if active && !confirmed {
        let message = format!(
            "this query parameter must be true: saving replaces the active hooks in .capy/settings.json of {}; to do so, \
             send the request with `?replaceLegacyHooks=true`",
            found.repositories.join(", ")
        );
        return Err(ApiError::field("replaceLegacyHooks", message));
    }
    if let Some(size) = body.vm_size {
        project.vm_size = size;
    }
    let hooks = body
        .hooks
        .or_else(|| project.setup.take().and_then(|setup| setup.hooks));
    project.setup = Some(SetupBody {
        vm_size: None,
        repositories: body.repositories,
        hooks,
    });
    Ok(())
}

fn view(project: &ProjectRow, found: LegacyFound) -> SetupView {
    let LegacyFound {
        repositories,
        check_complete,
    } = found;
    let (status, source) = match (&project.setup, repositories.is_empty()) {
        (Some(_), true) => (LegacyStatus::None, SetupSource::Setup),
        (Some(_), false) => (LegacyStatus::Ignored, SetupSource::Setup),
        (None, true) => (LegacyStatus::None, SetupSource::None),
        (None, false) => (LegacyStatus::Active, SetupSource::Legacy),
    };
    SetupView {
        source,
        legacy_hooks: LegacyHooks {
            status,
            repositories,
            check_complete,
        },
        setup: setup_body(project),
    }
}

/// The setup object as it holds now: what was saved for repositories the project still has, with the project's own size
/// and branches; without a saved one, every repository with nothing to run.
fn setup_body(project: &ProjectRow) -> SetupBody {
    let saved = project.setup.as_ref();
    let of = |name: &str| saved?.repositories.iter().find(|saved| saved.repository == name);
    let repositories = project
        .repos
        .iter()
        .filter_map(|repo| match (saved, of(&repo.repo_full_name)) {
            (Some(_), None) => None,
            (_, Some(saved)) => Some(RepoSetup {
                branch: repo.branch.clone(),
                ..saved.clone()
            }),
            (None, None) => Some(RepoSetup {
                repository: repo.repo_full_name.clone(),
                branch: repo.branch.clone(),
                scripts: Scripts::default(),
                timeouts: None,
                commands: Vec::new(),
            }),
        })
        .collect();
    SetupBody {
        vm_size: Some(project.vm_size),
        repositories,
        hooks: saved.and_then(|setup| setup.hooks.clone()),
    }
}
