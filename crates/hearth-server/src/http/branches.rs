//! Which branches a project's repositories have: what a person needs who names one.

use axum::Json;
use axum::extract::State;
use futures::future::join_all;
use hearth_api::ids::ProjectId;
use hearth_api::page::Items;
use hearth_api::project::RepoBranches;
use hearth_api::token::Scope;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::Path;
use crate::repos::checkouts::checkouts;
use crate::repos::remote_branches::remote_branches;

/// Most branches of one repository that are listed.
const MAX_BRANCHES: usize = 1000;

/// List the branches of a project's repositories
///
/// Each repository's own server is asked, for 5 s at most; for one that does not answer, `branches` is `null`.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/branches",
    tag = "projects",
    responses((status = 200, body = Items<RepoBranches>, description = "The branches of each repository"))
)]
pub async fn list_branches(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<Items<RepoBranches>>, ApiError> {
    let project = caller
        .project_by(&state, &id, &[Scope::ProjectRead, Scope::ProjectWrite])
        .await?;
    let pool = state.store().pool(&project.id).await?;
    let asked = checkouts(&project, pool.as_ref()).into_iter().map(async |checkout| {
        let remote = checkout.remote();
        let sources = state.mirrors.sources();
        let mut branches = match remote_branches(sources, &remote).await {
            Ok(branches) => Some(branches),
            Err(error) => {
                // A user learns the reason when the repository is cloned; here the branches are only not known.
                tracing::debug!(%error, repo = checkout.repo_full_name, "the branches are not known");
                None
            }
        };
        let is_there = branches.as_ref().map(|all| all.contains(&checkout.branch));
        if let Some(all) = &mut branches {
            all.truncate(MAX_BRANCHES);
        }
        RepoBranches {
            repo_full_name: checkout.repo_full_name,
            branch: checkout.branch,
            is_there,
            branches,
        }
    });
    Ok(Json(Items {
        items: join_all(asked).await,
    }))
}
