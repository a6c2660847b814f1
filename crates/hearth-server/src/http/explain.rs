//! Why a pool is as it is, and why a claim got what it got.

use axum::Json;
use axum::extract::State;
use hearth_api::error::ErrorCode;
use hearth_api::explain::{ClaimExplained, Condition, PoolExplained};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::token::Scope;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::Path;
use crate::repos::checkouts::checkouts;
use crate::store::ProjectRow;

/// Explain the warm pool
///
/// A summary, conditions with what to do, each instance beside where its branches are now, and the planner's latest
/// decisions. How long conditions hold and what was decided is kept in memory: a restart of the server forgets it.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/warm-pool/explain",
    tag = "warm pool",
    responses((status = 200, body = PoolExplained, description = "Why the pool is as it is"))
)]
pub async fn explain_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<PoolExplained>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let mut explained = state
        .status
        .explain(&project, state.pools.observe_pool(&project).await?)
        .await?;
    let not_followed = not_followed(&state, &project).await?;
    if let Some(first) = not_followed.first() {
        explained.summary.push_str("; ");
        explained.summary.push_str(&first.message);
    }
    explained.conditions.extend(not_followed);
    Ok(Json(explained))
}

/// Repositories and branches of the pool that cannot be followed.
async fn not_followed(state: &AppState, project: &ProjectRow) -> Result<Vec<Condition>, ApiError> {
    let pool = state.store().pool(&project.id).await?;
    let faults = checkouts(project, pool.as_ref())
        .into_iter()
        .filter_map(|checkout| state.watch.fault(&checkout.remote(), &checkout.branch));
    let conditions = faults.map(|fault| Condition {
        kind: if fault.branch.is_some() {
            "BranchMissing".to_owned()
        } else {
            "RepositoryUnreachable".to_owned()
        },
        status: true,
        since: fault.since,
        message: fault.message,
    });
    Ok(conditions.collect())
}

/// Explain a claim
///
/// Why it got this instance, and where the milliseconds went. A token that may only claim sees its own claims. Kept for 24 h
/// after the claim's end.
#[utoipa::path(
    get,
    path = "/instances/{id}/claim",
    tag = "claims",
    responses((status = 200, body = ClaimExplained, description = "How the hand-over went"), (status = 409, description = "refused"))
)]
pub async fn explain_claim(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<ClaimExplained>, ApiError> {
    let scopes = [Scope::ProjectRead, Scope::Claim];
    let Some(claim) = state.store().claim(&id).await? else {
        caller.instance_by(&state, &id, &scopes).await?;
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "this instance is not claimed; `GET …/warm-pool/explain` explains its pool",
        ));
    };
    // The claim outlives its instance: what it says is looked at when the task is over, too.
    let gone = || ApiError::not_found("instance");
    match caller.project_by(&state, &claim.project, &scopes).await {
        Ok(_) => {}
        Err(_) if scopes.iter().any(|scope| caller.has(*scope)) => return Err(gone()),
        Err(error) => return Err(error),
    }
    if !caller.has(Scope::ProjectRead) && claim.token != caller.0.id {
        return Err(gone());
    }
    Ok(Json(crate::claims::explain_claim(claim)))
}
