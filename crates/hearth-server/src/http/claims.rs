//! Claims: hand-over, lease, release.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use hearth_api::claim::{ClaimReply, ClaimRequest, ExtendRequest, Heartbeat, MAX_LEASE_MINUTES, Released};
use hearth_api::error::{ErrorCode, FieldError};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::token::Scope;
use hearth_api::values::{TaskId, VariableName, VariableValue};
use hearth_core::claim::ClaimOrder;
use hearth_core::state::InstanceState;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, OptionalBody, Path};
use super::pool::need_allowed;
use super::validate::Faults;
use crate::claims::{ClaimTask, FIELDS_OF_A_KEY};
use crate::store::{AskedFields, Extended, InstanceRow};
use crate::vms::ended::ended_message;

/// Length of a lease when none is asked for: a long working day. A heartbeat or any exec renews it.
const DEFAULT_TTL_MINUTES: u64 = 12 * 60;
/// A strict claim waits so long, or as long as its patience lasts, until it is known what was pushed before it.
const REPO_BUDGET: Duration = Duration::from_secs(5);

/// Claim a VM
///
/// Hands one VM over to one task and never to another. `taskId` (or the header `Idempotency-Key`) makes it safe to repeat: the same
/// key and body is the same VM. `waitMs` and `miss` may differ: they do not say which VM is meant.
#[utoipa::path(
    post,
    path = "/projects/{projectId}/warm-pool/claim",
    tag = "claims",
    params(("Idempotency-Key" = Option<TaskId>, Header, description = "The same as `taskId`")),
    request_body(content = Option<ClaimRequest>),
    responses((status = 200, body = ClaimReply, description = "The VM is yours"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn claim_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    headers: HeaderMap,
    OptionalBody(mut body): OptionalBody<ClaimRequest>,
) -> Result<Json<ClaimReply>, ApiError> {
    let came = Instant::now();
    let project = caller.project(&state, &id, Scope::Claim).await?;
    need_allowed(&project)?;
    let key = idempotency_key(&headers, body.task_id.take())?;
    let ttl = body.ttl_minutes.unwrap_or(DEFAULT_TTL_MINUTES);
    let mut faults = Faults::default();
    let names = body.env.iter().flat_map(BTreeMap::keys);
    faults.variable_names(names.map(|name| (format!("env.{name}"), name.as_str())));
    faults.finish()?;
    if body.checkpoint.is_some() {
        only_with_pool(&body)?;
    }
    let checkpoint = body.checkpoint.clone();
    let wait = Duration::from_millis(body.wait_ms.unwrap_or_default());
    let task = ClaimTask {
        came,
        order: ClaimOrder {
            strict: body.strict.unwrap_or_default(),
            miss: body.miss.unwrap_or_default(),
            patience: wait.min(state.longest_wait),
        },
        key: key.map(String::from),
        // What was asked and not how it was written: without the key, wherever that stood, and with `null` as good as absent.
        // Keyed with the token's id: the hash of a body with secrets in it must not be guessable from the database.
        body_hash: hex::encode(
            Sha256::new()
                .chain_update(caller.0.id.as_str())
                .chain_update(serde_json::to_vec(&body).unwrap_or_default())
                .finalize(),
        ),
        asked: asked(&caller, &body, ttl),
        token: caller.0.id.clone(),
        user: caller.0.owner.clone(),
        branch: body.branch.map(String::from),
        lease: SignedDuration::from_mins(i64::try_from(ttl).unwrap_or(i64::MAX)),
        env: texts(body.env),
        git_identity: body.git_identity,
    };
    if let Some(checkpoint) = &checkpoint {
        return super::forks::claim_checkpoint(&state, &caller, &project.id, checkpoint, &task).await;
    }
    if task.order.strict {
        let pool = state.store().pool(&project.id).await?;
        let patience = task.order.patience.max(REPO_BUDGET);
        let left = patience.saturating_sub(came.elapsed());
        state.watch.answer(&project, pool.as_ref(), left).await;
    }
    match state.claims.claim(&project, &task).await {
        Ok(reply) => Ok(Json(reply)),
        Err(error) => {
            let error = ApiError::from(error);
            state.metrics.claim_refused(&project.id, error.code());
            Err(error)
        }
    }
}

/// 422 for what cannot be asked of a VM that continues from a checkpoint: what it holds is in the checkpoint.
fn only_with_pool(body: &ClaimRequest) -> Result<(), ApiError> {
    let given = [
        ("branch", body.branch.is_some()),
        ("strict", body.strict.is_some()),
        ("miss", body.miss.is_some()),
        ("waitMs", body.wait_ms.is_some()),
        ("env", body.env.is_some()),
        ("gitIdentity", body.git_identity.is_some()),
    ];
    let given = given.into_iter().filter(|(_, given)| *given);
    let faults: Vec<FieldError> = given
        .map(|(field, _)| FieldError {
            path: field.to_owned(),
            message: "does not go with `checkpoint`: the VM is as the checkpoint is".to_owned(),
        })
        .collect();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(ApiError::fields(faults)),
    }
}

/// Variables as plain texts.
fn texts(env: Option<BTreeMap<VariableName, VariableValue>>) -> BTreeMap<String, String> {
    let pairs = env.into_iter().flatten();
    pairs.map(|(name, value)| (name.into(), value.into())).collect()
}

/// What of a body decides which VM is meant, field by field: how long one waits for it, and what is done meanwhile, does not.
/// Keyed with the token's id, as above.
fn asked(caller: &Caller, body: &ClaimRequest, ttl: u64) -> AskedFields {
    let ClaimRequest {
        task_id: _,
        branch,
        strict,
        miss: _,
        wait_ms: _,
        ttl_minutes: _,
        env,
        git_identity,
        // It is in the hash of the whole body: see `claim_checkpoint`.
        checkpoint: _,
    } = body;
    let [branch_field, strict_field, env_field, git_field, ttl_field] = FIELDS_OF_A_KEY;
    let said = [
        (branch_field, json!(branch)),
        (strict_field, json!(strict.unwrap_or_default())),
        (env_field, json!(env.as_ref().filter(|env| !env.is_empty()))),
        (git_field, json!(git_identity)),
        (ttl_field, json!(ttl)),
    ];
    said.into_iter()
        .map(|(field, value)| {
            let hash = Sha256::new()
                .chain_update(caller.0.id.as_str())
                .chain_update(field)
                .chain_update(value.to_string())
                .finalize();
            (field.to_owned(), hex::encode(hash))
        })
        .collect()
}

/// The key of a claim, from the header or the body. Both may be given when they say the same.
fn idempotency_key(headers: &HeaderMap, in_body: Option<TaskId>) -> Result<Option<TaskId>, ApiError> {
    const HEADER: &str = "Idempotency-Key";
    let Some(value) = headers.get(HEADER) else {
        return Ok(in_body);
    };
    let Ok(key) = value.to_str() else {
        return Err(ApiError::field(
            HEADER,
            "must be visible ASCII characters; for others use `taskId` in the body",
        ));
    };
    let key = TaskId::try_from(key).map_err(|fault| ApiError::field(HEADER, fault.to_string()))?;
    if in_body.is_some_and(|other| other != key) {
        return Err(ApiError::field(
            HEADER,
            "is not the same as `taskId` in the body: give one of the two",
        ));
    }
    Ok(Some(key))
}

/// A claimed instance that this caller may use: a claim token only its own.
pub async fn own_claim(state: &AppState, caller: &Caller, id: &InstanceId) -> Result<InstanceRow, ApiError> {
    let row = caller.instance(state, id, Scope::Claim).await?;
    if row.state != InstanceState::Claimed {
        return Err(ApiError::new(ErrorCode::Conflict, "this instance is not claimed"));
    }
    if row.being_forked {
        let why = "this fork is still being made; try again when the request that makes it has been answered";
        return Err(ApiError::new(ErrorCode::Conflict, why));
    }
    if !caller.has(Scope::Admin) {
        let claim = state.store().claim(id).await?;
        if claim.is_none_or(|claim| claim.token != caller.0.id) {
            return Err(ApiError::not_found("instance"));
        }
    }
    Ok(row)
}

/// Release a claimed VM
///
/// It is destroyed: a VM is used once.
#[utoipa::path(
    post,
    path = "/instances/{id}/release",
    tag = "claims",
    responses((status = 200, body = Released, description = "It is being destroyed"), (status = 409, description = "refused"))
)]
pub async fn release_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<Released>, ApiError> {
    let row = own_claim(&state, &caller, &id).await?;
    if !state.claims.release(&row, "it was released").await? {
        return Err(ApiError::not_found("instance"));
    }
    Ok(Json(Released { id, released: true }))
}

/// Keep the lease of a claimed VM
#[utoipa::path(
    post,
    path = "/instances/{id}/heartbeat",
    tag = "claims",
    responses((status = 200, body = Heartbeat, description = "The new end of the lease"), (status = 409, description = "refused"))
)]
pub async fn heartbeat_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<Heartbeat>, ApiError> {
    own_claim(&state, &caller, &id).await?;
    let expires_at = state.store().renew_lease(&id, Timestamp::now()).await?;
    let expires_at = expires_at.ok_or_else(|| ApiError::not_found("instance"))?;
    Ok(Json(Heartbeat { id, expires_at }))
}

/// Let the lease of a claimed VM end later
///
/// By so many minutes. A lease ends 7 days from now at the latest: more is refused, and the refusal says how much is possible.
#[utoipa::path(
    post,
    path = "/instances/{id}/extend",
    tag = "claims",
    request_body = ExtendRequest,
    responses((status = 200, body = Heartbeat, description = "The new end of the lease"), (status = 409, description = "refused"))
)]
pub async fn extend_claim(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Body(body): Body<ExtendRequest>,
) -> Result<Json<Heartbeat>, ApiError> {
    let row = own_claim(&state, &caller, &id).await?;
    // There is nothing left to keep for longer.
    if let Some(end) = state.probes.ends().check(&row).await? {
        return Err(ApiError::new(ErrorCode::Conflict, ended_message(&row, &end)));
    }
    let minutes = |count: u64| SignedDuration::from_mins(i64::try_from(count).unwrap_or(i64::MAX));
    let latest = Timestamp::now() + minutes(MAX_LEASE_MINUTES);
    match state.store().extend_lease(&id, minutes(body.minutes), latest).await? {
        Extended::Until(expires_at) => Ok(Json(Heartbeat { id, expires_at })),
        Extended::NotClaimed => Err(ApiError::not_found("instance")),
        Extended::TooFar { end } => {
            let possible = latest.duration_since(end).as_mins().max(0);
            Err(ApiError::field(
                "minutes",
                format!(
                    "must be at most {possible}: a lease ends 7 days ({MAX_LEASE_MINUTES} minutes) from now at the latest, and this one \
                     ends {end:.0}"
                ),
            ))
        }
    }
}
