//! Advice for a pool's target size, from the history.

use axum::Json;
use axum::extract::State;
use hearth_api::advice::{AdviceOutcome, PoolAdvice};
use hearth_api::error::ErrorCode;
use hearth_api::ids::ProjectId;
use hearth_api::token::Scope;
use hearth_core::advice::{Filling, Outcome, replay, suggest};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Path, Query};

/// Days that are replayed when nothing else is asked for.
const DEFAULT_DAYS: u32 = 7;
/// Claims that are replayed at most: the newest.
const MOST_CLAIMS: u32 = 20_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AdviceQuery {
    /// Replay so many days until now; 7 when absent.
    #[param(nullable = false, minimum = 1, maximum = 90, default = json!(DEFAULT_DAYS))]
    days: Option<u32>,
    /// Also say what this target would have meant.
    #[param(nullable = false, minimum = 0, maximum = 50)]
    target: Option<u32>,
}

/// Advise on a pool's target size
///
/// The claims of the last days are replayed against pools of other sizes, filled as fast as this one was: which share would have got a ready VM,
/// how long 95 of 100 would have waited at most, and how many hours VMs would have waited ready. 409 while the history knows no VM of the pool.
#[utoipa::path(
    get,
    path = "/projects/{projectId}/warm-pool/advice",
    tag = "warm pool",
    params(AdviceQuery),
    responses((status = 200, body = PoolAdvice, description = "The advice"), (status = 409, description = "refused"))
)]
pub async fn advise_pool(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Query(query): Query<AdviceQuery>,
) -> Result<Json<PoolAdvice>, ApiError> {
    let project = caller.project(&state, &id, Scope::ProjectRead).await?;
    let until = Timestamp::now();
    let days = i64::from(query.days.unwrap_or(DEFAULT_DAYS));
    let since = until - SignedDuration::from_hours(24 * days);
    let used = state.store().pool_use(&project.id, since, MOST_CLAIMS).await?;
    let Some(refill) = used.refill else {
        let why = "no VM of this pool was made in this time, so nothing is known of how fast it is filled; enable it, or ask for more days";
        return Err(ApiError::new(ErrorCode::Conflict, why));
    };
    let at_once = state.status.host_use().max_forks;
    let filling = Filling {
        refill,
        at_once: usize::try_from(at_once).unwrap_or(1),
    };
    let pool = state.store().pool(&project.id).await?;
    let present = pool.map_or(0, |pool| usize::try_from(pool.config.target_size).unwrap_or_default());
    let asked = query.target.map(|target| usize::try_from(target).unwrap_or_default());
    let claims = used.claims.len() as u64;
    // Many claims against many pools: not on a thread that answers others.
    let replayed = tokio::task::spawn_blocking(move || {
        let of = |target| replay(&used.claims, since, until, target, filling);
        (suggest(&used.claims, since, until, filling), of(present), asked.map(of))
    });
    let (suggested, present, asked) = replayed
        .await
        .map_err(|error| ApiError::unavailable(format!("the claims could not be replayed: {error}")))?;
    Ok(Json(PoolAdvice {
        since,
        until,
        claims,
        refill_ms: ms(refill),
        at_once,
        suggested: shown(&suggested),
        present: shown(&present),
        asked: asked.as_ref().map(shown),
    }))
}

fn ms(length: SignedDuration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or_default()
}

fn shown(outcome: &Outcome) -> AdviceOutcome {
    AdviceOutcome {
        target: outcome.target as u64,
        hit_rate: outcome.hit_rate(),
        p95_wait_ms: ms(outcome.p95_wait),
        vm_hours: outcome.vm_hours,
    }
}
