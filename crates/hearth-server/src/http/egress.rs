//! What the claimed VMs of a project may connect to, and what they were refused.

use axum::Json;
use axum::extract::State;
use hearth_api::egress::{EgressPolicy, InstanceEgress, ProjectEgress};
use hearth_api::error::ErrorCode;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::token::Scope;
use hearth_api::values::EgressNetwork;
use hearth_drivers::{DriverError, closed_network, never_open};
use jiff::Timestamp;

use super::AppState;
use super::auth::Caller;
use super::claims::own_claim;
use super::error::ApiError;
use super::extract::{Body, Path};
use super::validate::Faults;

/// Show the egress policy
///
/// What the project's claimed VMs may connect to.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/egress",
    tag = "projects",
    responses((status = 200, body = ProjectEgress, description = "The policy; `open` when none was set"))
)]
pub async fn get_egress(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<ProjectEgress>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    show(&state, &project.id).await.map(Json)
}

/// Set the egress policy
///
/// It replaces the one before, and is in force in the project's claimed VMs when this is answered, except in those that `pending` names:
/// connections that it does not allow end. Private networks, the host's own addresses and metadata services are closed in both modes;
/// a network in `cidrs` that lies within a closed one opens it, which only an admin of the installation's first tenant may add.
#[utoipa::path(
    put,
    path = "/projects/{projectId}/egress",
    tag = "projects",
    request_body = EgressPolicy,
    responses((status = 200, body = ProjectEgress, description = "The policy"))
)]
pub async fn put_egress(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Body(policy): Body<EgressPolicy>,
) -> Result<Json<ProjectEgress>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectWrite).await?;
    let before = state.store().egress(&project.id).await?;
    let before = before.map(|(policy, _)| policy.cidrs).unwrap_or_default();
    check(&caller, &policy.cidrs, &before)?;
    if !state.store().put_egress(&project.id, &policy, Timestamp::now()).await? {
        return Err(ApiError::not_found("project"));
    }
    // To its end, also when the client goes away meanwhile.
    let (egress, of) = (state.egress.clone(), project.id.clone());
    let changed = tokio::spawn(async move { egress.changed(&of).await }).await;
    changed.map_err(|error| ApiError::unavailable(format!("the policy is set, and was not applied: {error}")))??;
    tracing::info!(project = %project.id, mode = policy.mode.as_str(), "egress policy set");
    show(&state, &project.id).await.map(Json)
}

/// Show what a claimed VM was refused
///
/// The policy that it is held to, and its attempts to reach anything else: names that were not resolved, and addresses.
#[utoipa::path(
    get,
    path = "/instances/{id}/egress",
    tag = "claims",
    responses(
        (status = 200, body = InstanceEgress, description = "The policy and the attempts, the latest first"),
        (status = 409, description = "refused")
    )
)]
pub async fn get_instance_egress(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<InstanceEgress>, ApiError> {
    let row = own_claim(&state, &caller, &id).await?;
    let seen = state.egress.seen(&row.vm).await.map_err(|error| match error {
        error @ DriverError::Permanent { .. } => ApiError::new(ErrorCode::Conflict, error.to_string()),
        error => ApiError::unavailable(error.to_string()),
    })?;
    let set = state.store().egress(&row.project).await?;
    Ok(Json(InstanceEgress {
        up_to_date: set.map(|(policy, _)| policy).unwrap_or_default() == seen.policy,
        policy: seen.policy,
        refused: seen.refused,
        more: seen.more,
    }))
}

async fn show(state: &AppState, project: &ProjectId) -> Result<ProjectEgress, ApiError> {
    let set = state.store().egress(project).await?;
    let (policy, updated_at) = set.map_or_else(Default::default, |(policy, at)| (policy, Some(at)));
    let pending = state.egress.pending(project, &policy).await?;
    Ok(ProjectEgress {
        mode: policy.mode,
        hosts: policy.hosts,
        cidrs: policy.cidrs,
        updated_at,
        pending,
    })
}

/// Which networks may be named: some by nobody, closed ones only by who answers for the host. Those of before may stay.
fn check(caller: &Caller, cidrs: &[EgressNetwork], before: &[EgressNetwork]) -> Result<(), ApiError> {
    let mut faults = Faults::default();
    let mut opens = Vec::new();
    for (at, network) in cidrs.iter().enumerate() {
        let Some(net) = network.net() else { continue };
        if let Some(why) = never_open(net) {
            faults.add(format!("cidrs[{at}]"), format!("cannot be opened: {why}"));
        } else if !before.contains(network) && network.names_host_bits() {
            faults.add(
                format!("cidrs[{at}]"),
                format!("names a host inside a network: write {net} for all of it"),
            );
        } else if !before.contains(network) {
            let closed = closed_network(net)
                .map_err(|error| ApiError::unavailable(format!("the host's addresses cannot be read: {error}")))?;
            opens.extend(closed.map(|closed| format!("{network} (within {closed})")));
        }
    }
    faults.finish()?;
    if !opens.is_empty() && caller.need_host().is_err() {
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            format!(
                "only an admin of the installation's first tenant may open networks that are closed to VMs: {}",
                opens.join(", ")
            ),
        ));
    }
    Ok(())
}
