//! Forks of claimed VMs, and named checkpoints of them, by their owners.

use axum::Json;
use axum::extract::State;
use hearth_api::claim::ClaimReply;
use hearth_api::error::ErrorCode;
use hearth_api::fork::{
    CheckpointDeleted, CheckpointRequest, ForkReply, ForkRequest, NamedCheckpointItem, RestoreRequest,
};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::page::Items;
use hearth_api::token::Scope;
use hearth_api::values::CheckpointName;
use hearth_drivers::DriverError;
use jiff::SignedDuration;
use tokio::time::Instant;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::exec::show_life;
use super::extract::{Body, OptionalBody, Path};
use super::pause::claimed_and_there;
use crate::claims::{ClaimTask, ForkError, ForkOrder};
use crate::store::{InstanceRow, NamedCheckpoint};

/// Fork a claimed VM
///
/// Makes running copies of it, with its processes, memory and disk as at one instant. The VM itself is stopped for a moment and continues.
/// Each copy is a claimed VM of its own: with its own host name, machine id, keys and clock, and a claim of the same owner. Detached
/// sessions run in the copies too; attached commands and terminals, and connections to the outside, end there. All are made or none. A
/// paused VM stays paused; its copies run.
#[utoipa::path(
    post,
    path = "/instances/{id}/fork",
    tag = "claims",
    request_body(content = Option<ForkRequest>),
    responses((status = 200, body = ForkReply, description = "The copies"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn fork_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    OptionalBody(body): OptionalBody<ForkRequest>,
) -> Result<Json<ForkReply>, ApiError> {
    let came = Instant::now();
    let row = claimed_and_there(&state, &caller, &id).await?;
    let order = ForkOrder {
        came,
        count: usize::try_from(body.count.unwrap_or(1)).unwrap_or(usize::MAX),
        task: body.task_id,
        lease: body.ttl_minutes.map(minutes),
    };
    let reply = state.claims.fork(&row, order).await?;
    after_stop(&state, &row, true).await;
    Ok(Json(reply))
}

fn minutes(count: u64) -> SignedDuration {
    SignedDuration::from_mins(i64::try_from(count).unwrap_or(i64::MAX))
}

/// The VM was stopped for a moment: its clock is set, and where that is a sign of life, its lease renewed.
pub async fn after_stop(state: &AppState, row: &InstanceRow, is_life: bool) {
    if !state.pause.is_paused(&row.vm).await {
        state.probes.set_clock(row).await;
    }
    if is_life {
        show_life(state.store().clone(), row.id.clone()).await;
    }
}

/// Make a checkpoint of a claimed VM
///
/// Keeps its processes, memory and disk as at one instant under a name, until it is deleted or its project is. The VM is stopped for a
/// moment and continues. What is in its memory is in the checkpoint, secrets too: only the owner of the claim, and admins, can claim from it.
#[utoipa::path(
    post,
    path = "/instances/{id}/checkpoint",
    tag = "claims",
    request_body = CheckpointRequest,
    responses((status = 200, body = NamedCheckpointItem, description = "It is made"), (status = 409, description = "refused"))
)]
pub async fn checkpoint_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Body(body): Body<CheckpointRequest>,
) -> Result<Json<NamedCheckpointItem>, ApiError> {
    let row = claimed_and_there(&state, &caller, &id).await?;
    let note = body.note.map(String::from);
    let made = keep_checkpoint(&state, &row, body.name.into(), note, true).await?;
    Ok(Json(to_item(made)))
}

/// Makes a checkpoint of a claimed VM, where there is room for one.
pub async fn keep_checkpoint(
    state: &AppState,
    row: &InstanceRow,
    name: String,
    note: Option<String>,
    is_life: bool,
) -> Result<NamedCheckpoint, ApiError> {
    let (bytes, limit) = state.gc.disk();
    if bytes >= limit {
        return Err(ApiError::unavailable(format!(
            "templates and checkpoints take {} MiB of the {} MiB that they may have on this host (`hearth serve --template-disk`); delete \
             checkpoints, or try again when unused templates are gone",
            bytes >> 20,
            limit >> 20
        )));
    }
    let made = state.claims.checkpoint(row, name, note).await?;
    after_stop(state, row, is_life).await;
    Ok(made)
}

fn to_item(of: NamedCheckpoint) -> NamedCheckpointItem {
    NamedCheckpointItem {
        project_id: of.project,
        name: of.name,
        note: of.note,
        instance_id: of.instance,
        owner: of.owner,
        bytes: of.bytes.unwrap_or_default(),
        created_at: of.created_at,
    }
}

/// List the checkpoints of a project
///
/// Those that owners of claims made, by name.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/checkpoints",
    tag = "claims",
    responses((status = 200, body = Items<NamedCheckpointItem>, description = "All of them"))
)]
pub async fn list_checkpoints(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<Json<Items<NamedCheckpointItem>>, ApiError> {
    let scopes = [Scope::ProjectRead, Scope::Claim];
    let project = caller.project_by(&state, &id, &scopes).await?;
    let all = state.store().named_checkpoints(&project.id).await?;
    Ok(Json(Items {
        items: all.into_iter().map(to_item).collect(),
    }))
}

/// Delete a checkpoint
///
/// VMs that were made from it stay. Its files are removed when no VM is based on them any more.
#[utoipa::path(
    delete,
    path = "/projects/{projectId}/checkpoints/{checkpoint}",
    tag = "claims",
    responses((status = 200, body = CheckpointDeleted, description = "It is gone"))
)]
pub async fn delete_checkpoint(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, name)): Path<(ProjectId, CheckpointName)>,
) -> Result<Json<CheckpointDeleted>, ApiError> {
    let scopes = [Scope::ProjectWrite, Scope::Claim];
    let project = caller.project_by(&state, &id, &scopes).await?;
    let of = find(&state, &project.id, &name).await?;
    if !caller.has(Scope::ProjectWrite) {
        need_owner(&caller, &of)?;
    }
    if !state.store().forget_named_checkpoint(&of.key).await? {
        return Err(no_checkpoint(&of.name));
    }
    state.gc.run_soon();
    Ok(Json(CheckpointDeleted {
        deleted: true,
        name: of.name,
    }))
}

/// A checkpoint of a project.
async fn find(state: &AppState, project: &ProjectId, name: &CheckpointName) -> Result<NamedCheckpoint, ApiError> {
    let found = state.store().named_checkpoint(project, name).await?;
    found.ok_or_else(|| no_checkpoint(name.as_str()))
}

fn no_checkpoint(name: &str) -> ApiError {
    let message =
        format!("the project has no checkpoint `{name}`; `hearth checkpoint list PROJECT` shows those it has");
    ApiError::new(ErrorCode::NotFound, message)
}

/// 403 for others than the user whose claim it was, and admins.
pub fn need_owner(caller: &Caller, of: &NamedCheckpoint) -> Result<(), ApiError> {
    if caller.0.owner == of.owner || caller.has(Scope::Admin) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Forbidden,
        "this checkpoint is another user's, whose secrets may be in its memory; that user or an admin can use it",
    ))
}

/// Restore a claimed VM to a checkpoint
///
/// Its disk and memory become what they were when the checkpoint was made; what was done in it since is lost. Its claim stays. Another VM is
/// made of the checkpoint and takes its place when it answers: until then nothing changes.
#[utoipa::path(
    post,
    path = "/instances/{id}/restore",
    tag = "claims",
    request_body = RestoreRequest,
    responses((status = 200, body = ClaimReply, description = "The claim, with what is there now"), (status = 409, description = "refused"))
)]
pub async fn restore_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Body(body): Body<RestoreRequest>,
) -> Result<Json<ClaimReply>, ApiError> {
    // One that has ended is restored too.
    let row = super::claims::own_claim(&state, &caller, &id).await?;
    let of = find(&state, &row.project, &body.checkpoint).await?;
    need_owner(&caller, &of)?;
    let reply = state.claims.restore(&row, &of).await?;
    show_life(state.store().clone(), id).await;
    Ok(Json(reply))
}

/// A claim that is to continue from a checkpoint.
pub(super) async fn claim_checkpoint(
    state: &AppState,
    caller: &Caller,
    project: &ProjectId,
    name: &CheckpointName,
    task: &ClaimTask,
) -> Result<Json<ClaimReply>, ApiError> {
    let of = find(state, project, name).await?;
    need_owner(caller, &of)?;
    Ok(Json(state.claims.claim_checkpoint(&of, task).await?))
}

impl From<ForkError> for ApiError {
    fn from(error: ForkError) -> Self {
        let message = error.to_string();
        match error {
            ForkError::NoRoom { .. } => Self::no_room(message),
            ForkError::TooManyHeld { .. } | ForkError::TokenFull { .. } => {
                Self::new(ErrorCode::TooManyRequests, message)
            }
            ForkError::Task(fault) => Self::field("taskId", fault),
            ForkError::Ended => Self::new(ErrorCode::Gone, message),
            ForkError::NotClaimed => Self::not_found("instance"),
            ForkError::Unable(_)
            | ForkError::OtherRequest(_)
            | ForkError::NameTaken
            | ForkError::OtherServer { .. }
            | ForkError::Freeze(DriverError::Permanent { .. }) => Self::new(ErrorCode::Conflict, message),
            ForkError::Freeze(_) | ForkError::Copy(_) | ForkError::Broken(_) => Self::unavailable(message),
            ForkError::Store(error) => error.into(),
        }
    }
}
