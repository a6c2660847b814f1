//! Instances: the list, one with its steps, and a boot followed live.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use hearth_api::error::ErrorCode;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::instance::{
    BootEnded, FollowEvent, InstanceCommand, InstanceDetail, InstanceItem, InstanceStatus, InstanceView, Step,
    StepStatus, Summary,
};
use hearth_api::page::Items;
use hearth_api::token::Scope;
use hearth_core::state::InstanceState;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Path, Query};
use crate::pools::cancel::Ended;
use crate::store::InstanceRow;
use crate::vms::pause::PausedIn;

/// Length of the list when none is asked for.
const DEFAULT_LIMIT: i64 = 20;
/// A silent stream says that it is still there, so that proxies keep it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Most items; 20 when absent.
    #[param(nullable = false, minimum = 1, maximum = 50, default = json!(DEFAULT_LIMIT))]
    limit: Option<i64>,
    /// Only these.
    #[param(nullable = false)]
    status: Option<InstanceStatus>,
}

/// List instances
///
/// Newest first.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/warm-pool/instances",
    tag = "warm pool",
    params(ListQuery),
    responses((status = 200, body = Items<InstanceItem>, description = "The instances"))
)]
pub async fn list_instances(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Items<InstanceItem>>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    let rows = state
        .store()
        .visible_instances(&project.id, query.status, limit)
        .await?;
    Ok(Json(Items {
        items: rows.iter().filter_map(InstanceRow::to_item).collect(),
    }))
}

/// Get an instance with its steps
#[utoipa::path(
    get,
    path = "/projects/{projectId}/warm-pool/instances/{id}",
    tag = "warm pool",
    responses((status = 200, body = InstanceDetail, description = "The instance"))
)]
pub async fn get_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, instance)): Path<(ProjectId, InstanceId)>,
) -> Result<Json<InstanceDetail>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let gone = || ApiError::not_found("instance");
    let row = state
        .store()
        .instance(&instance)
        .await?
        .filter(|row| row.project == project.id)
        .ok_or_else(gone)?;
    let status = row.status().ok_or_else(gone)?;
    let steps = state.store().steps(&instance).await?;
    Ok(Json(InstanceDetail {
        summary: summary(&row, status, &steps),
        id: row.id,
        instance_id: row.vm,
        status,
        is_test: row.purpose.is_test(),
        failure_reason: row.failure_reason.map(String::from),
        steps,
        created_at: row.created_at,
    }))
}

/// Get an instance with what is inside
///
/// Its checkouts, the project's named commands, and what the repositories' settings files say.
#[utoipa::path(
    get,
    path = "/instances/{id}",
    tag = "claims",
    responses((status = 200, body = InstanceView, description = "The instance"))
)]
pub async fn view_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<InstanceView>, ApiError> {
    let (row, project) = caller
        .instance_by(&state, &id, &[Scope::ProjectRead, Scope::Claim])
        .await?;
    let status = row.status().ok_or_else(|| ApiError::not_found("instance"))?;
    let claim = state.store().claim(&row.id).await?;
    // Since it was made it may have been brought somewhere else.
    let (repos, because) = match claim {
        Some(claim) => (claim.reply.repos, claim.paused_because),
        None => (row.repos.clone(), None),
    };
    let commands = state.set_ups.commands_of(&project, &row).await?.into_iter();
    let commands = commands.filter_map(|own| {
        let repo = repos.iter().find(|repo| repo.repo_full_name == own.repo_full_name)?;
        Some(InstanceCommand {
            name: own.name,
            command: own.command,
            path: repo.path.clone(),
            repo_full_name: own.repo_full_name,
        })
    });
    let unresponsive = state.probes.unresponsive(&row.vm);
    let paused = state.pause.paused_in(&row.vm).await;
    Ok(Json(InstanceView {
        commands: commands.collect(),
        failure: state.store().failure_of(&row).await?,
        id: row.id,
        instance_id: row.vm,
        project_id: row.project,
        status,
        is_test: row.purpose.is_test(),
        recipe: row.recipe,
        repos,
        settings: row.settings,
        expires_at: row.lease_ends_at,
        lease_warning_minutes: project.claim_rules.lease_warning_minutes,
        unresponsive,
        paused: paused.is_some(),
        paused_to_disk: paused == Some(PausedIn::Disk),
        paused_because: because.filter(|_| paused.is_some()),
        rebooted_at: row.rebooted_at,
        vm_ended_at: row.vm_ended.as_ref().map(|(at, _)| *at),
        vm_ended_because: row.vm_ended.map(|(_, why)| why),
    }))
}

/// End a boot
///
/// Ends the boot of one instance, a test or one of the pool, while it is made: what it did until then stays in its record, which
/// says who ended it; its VM is removed. Of a boot that has ended, the VM that was kept for debugging is removed. An enabled pool makes another
/// one.
#[utoipa::path(
    delete,
    path = "/instances/{id}",
    tag = "warm pool",
    responses((status = 200, body = BootEnded, description = "It is over"), (status = 409, description = "refused"))
)]
pub async fn end_boot(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<BootEnded>, ApiError> {
    caller.instance(&state, &id, Scope::ProjectWrite).await?;
    let by = match (&caller.0.owner, &caller.0.name) {
        (owner, name) if owner == name => owner.clone(),
        (owner, name) => format!("{owner} (token `{name}`)"),
    };
    let ended = state.boots.cancel_boot(&id, &by).await?;
    if let Ended::InUse(in_use) = ended {
        let why = match in_use {
            InstanceState::Claimed => "this instance is claimed; `POST /instances/{id}/release` gives it back",
            _ => "this instance is ready; `POST …/warm-pool/clear` removes the ready VMs of the pool",
        };
        return Err(ApiError::new(ErrorCode::Conflict, why));
    }
    let row = state.store().instance(&id).await?;
    let status = row.as_ref().and_then(InstanceRow::status);
    Ok(Json(BootEnded {
        status: status.ok_or_else(|| ApiError::not_found("instance"))?,
        cancelled: ended == Ended::Boot,
        id,
    }))
}

fn summary(row: &InstanceRow, status: InstanceStatus, steps: &[Step]) -> Summary {
    let failed = steps.iter().find(|step| step.status == StepStatus::Error);
    let last = steps.last().map_or(row.created_at, |step| step.timestamp);
    Summary {
        success: matches!(status, InstanceStatus::Ready | InstanceStatus::Claimed),
        total_duration_ms: u64::try_from(last.duration_since(row.created_at).as_millis()).unwrap_or_default(),
        failed_step: failed.map(|step| step.name.clone()),
        error: row.failure_reason.clone().map(String::from),
        completed_steps: steps.iter().filter(|step| step.status == StepStatus::Success).count() as u64,
        total_steps: steps.len() as u64,
    }
}

/// Follow a boot
///
/// Server-sent events `stepStarted`, `commandStarted`, `output`, `stepEnded` and at last `ended`, each with a `FollowEvent` as data. What
/// happened before comes first.
#[utoipa::path(
    get,
    path = "/instances/{id}/follow",
    tag = "warm pool",
    responses((status = 200, content_type = "text/event-stream", body = String, description = "The events"))
)]
pub async fn follow_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    caller.instance(&state, &id, Scope::ProjectRead).await?;
    let followers = state.live_logs.clone();
    let (before, mut events) = followers.follow(&id);
    // Only now: had the boot ended before, the entry just made would wait for ever.
    let row = state.store().instance(&id).await?;
    let status = row.as_ref().and_then(InstanceRow::status);
    let over = status != Some(InstanceStatus::Provisioning);
    let mut replay = before;
    if over {
        let reason = row.and_then(|row| row.failure_reason);
        let steps = state.store().steps(&id).await?;
        replay = steps.into_iter().map(|step| FollowEvent::StepEnded { step }).collect();
        replay.push(FollowEvent::Ended {
            status,
            failure_reason: reason.clone().map(String::from),
        });
        followers.ended(&id, status, reason);
    }
    let stream = async_stream::stream! {
        for event in replay {
            yield Ok(to_sse(&event));
        }
        loop {
            if over {
                break;
            }
            match events.recv().await {
                Ok(event) => {
                    yield Ok(to_sse(&event));
                    if matches!(event, FollowEvent::Ended { .. }) {
                        break;
                    }
                }
                Err(RecvError::Lagged(count)) => {
                    let text = format!("\n[… {count} events lost: the client was too slow …]\n");
                    yield Ok(to_sse(&FollowEvent::Output { subject: None, text }));
                }
                Err(RecvError::Closed) => break,
            }
        }
    };
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn to_sse(event: &FollowEvent) -> Event {
    let name = match event {
        FollowEvent::StepStarted { .. } => "stepStarted",
        FollowEvent::CommandStarted { .. } => "commandStarted",
        FollowEvent::Output { .. } => "output",
        FollowEvent::StepEnded { .. } => "stepEnded",
        FollowEvent::Ended { .. } => "ended",
    };
    let event_of = Event::default().event(name);
    // Plain structs do not fail to serialise.
    event_of.json_data(event).unwrap_or_default()
}
