//! Links that others can open: signed for one port of one instance, with an end.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use hearth_api::error::ErrorCode;
use hearth_api::ids::InstanceId;
use hearth_api::port::{MAX_SHARE_SECONDS, Share, ShareRequest};
use hearth_core::state::InstanceState;
use jiff::{SignedDuration, Timestamp};

use super::{address, visitor};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::exec::usable;
use crate::http::extract::{Body, Path};

/// A working day.
const USUAL_SECONDS: u64 = 8 * 3600;

/// What is signed.
pub fn text(id: &InstanceId, port: u16) -> String {
    format!("{id} {port}")
}

/// Share a port
///
/// The reply's link works in a browser without a token, for this port of this VM alone, until its end or the end of the claim.
#[utoipa::path(
    post,
    path = "/instances/{id}/shares",
    tag = "ports",
    request_body = ShareRequest,
    responses((status = 200, body = Share, description = "The link"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn share_port(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    headers: HeaderMap,
    Body(body): Body<ShareRequest>,
) -> Result<Json<Share>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    if row.state != InstanceState::Claimed {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "this instance is not claimed: a link is given for a claim and ends with it",
        ));
    }
    let seconds = body.expires_in_seconds.unwrap_or(USUAL_SECONDS).min(MAX_SHARE_SECONDS);
    let length = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    // Whole seconds, as they are signed.
    let end = Timestamp::now()
        .checked_add(length)
        .and_then(|end| Timestamp::from_second(end.as_second()))
        .map_err(|_| ApiError::field("expiresInSeconds", "is too far away"))?;
    let link = state.ports.links.sign(&text(&id, body.port), end);
    let url = address::of(&state.ports, &headers, &id, body.port);
    Ok(Json(Share {
        url: format!("{url}?{}={link}", visitor::PARAMETER),
        port: body.port,
        expires_at: end,
    }))
}
