//! Claims: hand-over, lease, release.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use hearth_api::claim::{ClaimReply, ClaimRequest, Heartbeat, Released};
use hearth_api::error::ErrorCode;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::token::Scope;
use hearth_core::state::InstanceState;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Path, RawBody};
use super::validate::Faults;
use crate::reconcile::ClaimOrder;
use crate::store::{InstanceRow, Moved};

/// Length of a lease when none is asked for: a long working day. A heartbeat or any exec renews it.
const DEFAULT_TTL_MINUTES: u64 = 12 * 60;
/// Longest lease: a week.
const MAX_TTL_MINUTES: u64 = 7 * 24 * 60;
/// Longest wait.
const MAX_WAIT_MS: u64 = 60 * 60 * 1000;
/// Longest idempotency key, characters.
const MAX_KEY: usize = 200;

pub async fn claim_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    headers: HeaderMap,
    RawBody(raw, body): RawBody<ClaimRequest>,
) -> Result<Json<ClaimReply>, ApiError> {
    let project = caller.project(&state, &id, Scope::Claim).await?;
    let mut faults = Faults::default();
    let header = headers
        .get("idempotency-key")
        .map(|key| key.to_str().unwrap_or_default().to_owned());
    let key = body.task_id.clone().or(header);
    if let Some(key) = &key {
        let fine = !key.is_empty() && key.chars().count() <= MAX_KEY && !key.chars().any(char::is_control);
        faults.check(fine, "taskId", &format!("must be 1 to {MAX_KEY} printable characters"));
    }
    if let Some(branch) = &body.branch {
        faults.branch("branch", branch);
    }
    let ttl = body.ttl_minutes.unwrap_or(DEFAULT_TTL_MINUTES);
    faults.check(
        (1..=MAX_TTL_MINUTES).contains(&ttl),
        "ttlMinutes",
        "must be from 1 to 10080",
    );
    let wait = body.wait_ms.unwrap_or_default();
    faults.check(wait <= MAX_WAIT_MS, "waitMs", "must be at most 3600000");
    for (name, value) in body.env.iter().flatten() {
        faults.variable_name(&format!("env.{name}"), name);
        faults.variable_value(&format!("env.{name}"), value);
    }
    faults.finish()?;
    let order = ClaimOrder {
        key,
        // Keyed with the token's id: the hash of a body with secrets in it must not be guessable from the database.
        body_hash: hex::encode(
            Sha256::new()
                .chain_update(caller.0.id.as_str())
                .chain_update(&raw)
                .finalize(),
        ),
        token: caller.0.id.clone(),
        branch: body.branch,
        strict: body.strict.unwrap_or_default(),
        miss: body.miss.unwrap_or_default(),
        patience: Duration::from_millis(wait),
        lease: SignedDuration::from_mins(i64::try_from(ttl).unwrap_or(i64::MAX)),
        env: body.env.unwrap_or_else(BTreeMap::new),
    };
    Ok(Json(state.reconciler.claim(&project, &order).await?))
}

/// A claimed instance that this caller may use: a claim token only its own.
pub(super) async fn own_claim(state: &AppState, caller: &Caller, id: &InstanceId) -> Result<InstanceRow, ApiError> {
    let row = caller.instance(state, id, Scope::Claim).await?;
    if row.state != InstanceState::Claimed {
        return Err(ApiError::new(ErrorCode::Conflict, "this instance is not claimed"));
    }
    if !caller.has(Scope::Admin) {
        let claim = state.store().claim(id).await?;
        if claim.is_none_or(|claim| claim.token != caller.0.id) {
            return Err(ApiError::not_found("instance"));
        }
    }
    Ok(row)
}

pub async fn release_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<Released>, ApiError> {
    let row = own_claim(&state, &caller, &id).await?;
    let moved = state
        .store()
        .move_instance(&row.id, InstanceState::Deleting, Some(row.generation), Timestamp::now())
        .await?;
    if moved == Moved::Lost {
        return Err(ApiError::not_found("instance"));
    }
    state.reconciler.wake();
    Ok(Json(Released { id, released: true }))
}

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
