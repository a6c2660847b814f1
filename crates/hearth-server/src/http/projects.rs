//! Projects.

use axum::Json;
use axum::extract::State;
use hearth_api::ids::ProjectId;
use hearth_api::page::Page;
use hearth_api::project::{CreateProject, PatchProject, Project, ProjectDeleted, ProjectView};
use hearth_api::token::Scope;
use hearth_api::values::Cursor;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Path, Query};
use super::validate::Faults;
use crate::secrets::redactors;
use crate::store::{ClaimRules, ProjectRow, RepoSource};

/// Page size when none is asked for.
const DEFAULT_LIMIT: i64 = 20;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Most items of the page; 20 when absent.
    #[param(nullable = false, minimum = 1, maximum = 100, default = json!(DEFAULT_LIMIT))]
    limit: Option<i64>,
    /// `nextCursor` of the page before.
    #[param(nullable = false)]
    cursor: Option<Cursor>,
}

/// List projects
///
/// Oldest first, in pages.
#[utoipa::path(
    get,
    path = "/projects",
    tag = "projects",
    params(ListQuery),
    responses((status = 200, body = Page<Project>, description = "A page of projects"))
)]
pub async fn list_projects(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Project>>, ApiError> {
    caller.need(Scope::ProjectRead)?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    let mut faults = Faults::default();
    let after = match &query.cursor {
        None => None,
        Some(cursor) => {
            let after = from_cursor(cursor);
            faults.check(after.is_some(), "cursor", "is not one that this server gave out");
            after
        }
    };
    faults.finish()?;
    let after = after.as_ref().map(ProjectId::as_str);
    let mut rows = state
        .store()
        .projects(
            &caller.0.tenant,
            caller.0.project_id.as_ref(),
            caller.0.name_prefix.as_deref(),
            after,
            limit + 1,
        )
        .await?;
    let limit = usize::try_from(limit).unwrap_or(rows.len());
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = if has_more {
        rows.last().map(|row| to_cursor(&row.id))
    } else {
        None
    };
    Ok(Json(Page {
        items: rows.iter().map(|row| row.to_view().into()).collect(),
        next_cursor,
        has_more,
    }))
}

/// What a cursor says before it is encoded, so that a later version can tell its own from this one's; [`Cursor`] is exactly the texts
/// that decode.
const CURSOR_VERSION: &str = "1";

/// The place after this project.
fn to_cursor(last: &ProjectId) -> String {
    hex::encode(format!("{CURSOR_VERSION}{last}"))
}

fn from_cursor(cursor: &str) -> Option<ProjectId> {
    let text = String::from_utf8(hex::decode(cursor).ok()?).ok()?;
    text.strip_prefix(CURSOR_VERSION)?.parse().ok()
}

/// Make a project
///
/// Its VMs get the repositories in the order given. A name means one project of a tenant: one that is taken is 409, with the
/// id of the project that has it. Blanks around names and the case of ASCII letters do not count.
#[utoipa::path(
    post,
    path = "/projects",
    tag = "projects",
    request_body = CreateProject,
    responses(
        (status = 200, body = Project, description = "The new project"),
        (status = 409, description = "refused")
    )
)]
pub async fn create_project(
    State(state): State<AppState>,
    caller: Caller,
    Body(body): Body<CreateProject>,
) -> Result<Json<Project>, ApiError> {
    caller.need(Scope::ProjectWrite)?;
    if caller.0.project_id.is_some() {
        return Err(ApiError::new(
            hearth_api::error::ErrorCode::Forbidden,
            "this token is for one project and cannot make others",
        ));
    }
    caller.may_name(&body.name)?;
    let mut faults = Faults::default();
    let repos = faults.repos(
        "repos",
        &body.repos,
        &caller.0.tenant,
        &state,
        (body.lfs, body.submodules),
    );
    faults.image("image", body.image.as_deref(), None, &state).await;
    faults.finish()?;
    let now = Timestamp::now();
    let row = ProjectRow {
        id: ProjectId::generate(),
        tenant: caller.0.tenant.clone(),
        task_code: body.task_code.map_or_else(|| task_code(&body.name), String::from),
        name: body.name.trim().to_owned(),
        description: body.description.map(String::from),
        repos,
        image: body.image.map(String::from),
        vm_size: body.vm_size.unwrap_or_default(),
        project_setup: body.project_setup,
        setup: None,
        max_vms: body.max_vms,
        claim_rules: ClaimRules::default(),
        git_identity: body.git_identity,
        variables_version: 0,
        credentials_version: 0,
        template_epoch: 0,
        created_at: now,
        updated_at: now,
    };
    state.store().insert_project(&row).await?;
    Ok(Json(row.to_view().into()))
}

/// `My cool-app` → `MYCOOL`: what people tend to choose.
fn task_code(name: &str) -> String {
    const LENGTH: usize = 6;
    let code: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(LENGTH)
        .collect::<String>()
        .to_ascii_uppercase();
    if code.is_empty() { "TASK".to_owned() } else { code }
}

/// Get a project
#[utoipa::path(
    get,
    path = "/projects/{projectId}",
    tag = "projects",
    responses((status = 200, body = Project, description = "The project"))
)]
pub async fn get_project(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<Project>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    Ok(Json(project.to_view().into()))
}

/// Get everything that can be set of a project
///
/// Besides what `GET /projects/{projectId}` says: where its repositories are fetched from and what is fetched with them, the
/// image, the project's own commands, the VM size, the limit and the git identity.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/view",
    tag = "projects",
    responses((status = 200, body = ProjectView, description = "The project"))
)]
pub async fn view_project(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<ProjectView>, ApiError> {
    Ok(Json(caller.project(&state, &id, Scope::ProjectRead).await?.to_view()))
}

/// Change a project
///
/// An absent field stays as it is; `null` clears it where it may be empty. Ready VMs are replaced as they need to be.
#[utoipa::path(
    patch,
    path = "/projects/{projectId}",
    tag = "projects",
    request_body = PatchProject,
    responses(
        (status = 200, body = Project, description = "The changed project"),
        (status = 409, description = "refused")
    )
)]
pub async fn patch_project(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(patch): Body<PatchProject>,
) -> Result<Json<Project>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    if let Some(name) = &patch.name {
        caller.may_name(name)?;
    }
    let mut faults = Faults::default();
    let repos = patch
        .repos
        .as_ref()
        .map(|repos| faults.repos("repos", repos, &project.tenant, &state, (patch.lfs, patch.submodules)));
    let image = patch.image.as_ref().and_then(Option::as_deref);
    faults.image("image", image, project.image.as_deref(), &state).await;
    faults.finish()?;
    let change = |row: &mut ProjectRow| {
        apply(patch, repos, row);
        Ok::<_, ApiError>(())
    };
    let changed = state
        .store()
        .change_project(&project.id, Timestamp::now(), change)
        .await?;
    let row = changed.ok_or_else(|| ApiError::not_found("project"))?;
    if let Some(pool) = state.store().pool(&row.id).await? {
        state.watch.follow(&row, &pool);
    }
    if row.repos != project.repos {
        state.mirror_gc.run_soon();
    }
    state.wake.wake();
    Ok(Json(row.to_view().into()))
}

/// Changes the fields that the body has, and no other.
fn apply(patch: PatchProject, repos: Option<Vec<RepoSource>>, row: &mut ProjectRow) {
    if let Some(name) = patch.name {
        row.name = name.trim().to_owned();
    }
    if let Some(description) = patch.description {
        row.description = description.map(String::from);
    }
    if let Some(code) = patch.task_code {
        row.task_code = code.into();
    }
    if let Some(repos) = repos {
        row.repos = repos;
    } else {
        for repo in &mut row.repos {
            repo.lfs = patch.lfs.unwrap_or(repo.lfs);
            repo.submodules = patch.submodules.unwrap_or(repo.submodules);
        }
    }
    if let Some(identity) = patch.git_identity {
        row.git_identity = identity;
    }
    if let Some(image) = patch.image {
        row.image = image.map(String::from);
    }
    if let Some(commands) = patch.project_setup {
        row.project_setup = commands;
    }
    if let Some(size) = patch.vm_size {
        row.vm_size = size;
    }
    if let Some(most) = patch.max_vms {
        row.max_vms = most;
    }
    let rules = &mut row.claim_rules;
    rules.max_claims = patch.max_claims.unwrap_or(rules.max_claims);
    rules.idle_pause_minutes = patch.idle_pause_minutes.unwrap_or(rules.idle_pause_minutes);
    rules.idle_pause_to_disk = patch.idle_pause_to_disk.unwrap_or(rules.idle_pause_to_disk);
    rules.lease_warning_minutes = patch.lease_warning_minutes.unwrap_or(rules.lease_warning_minutes);
}

/// Delete a project
///
/// Its pool, its variables and its VMs go with it, claimed ones too.
#[utoipa::path(
    delete,
    path = "/projects/{projectId}",
    tag = "projects",
    responses((status = 200, body = ProjectDeleted, description = "It is gone"))
)]
pub async fn delete_project(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<ProjectDeleted>, ApiError> {
    let row = caller.project(&state, &id, Scope::ProjectWrite).await?;
    if !state.store().delete_project(&row.id, Timestamp::now()).await? {
        return Err(ApiError::not_found("project"));
    }
    redactors::forget(&row.id);
    state.wake.wake();
    state.gc.run_soon();
    state.mirror_gc.run_soon();
    Ok(Json(ProjectDeleted {
        deleted: true,
        id: row.id,
    }))
}
