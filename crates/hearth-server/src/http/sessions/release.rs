//! A session whose end releases its VM: noted in the claim before it begins, and watched when it runs.

use hearth_api::error::ErrorCode;
use hearth_core::state::InstanceState;
use hearth_guest::exec_session::SessionStart;

use crate::http::AppState;
use crate::http::error::ApiError;
use crate::store::InstanceRow;

/// That a session releases the VM is noted.
pub(super) struct Noted {
    /// By this request, and not by an earlier one.
    is_new: bool,
}

/// Notes it.
pub(super) async fn begin(state: &AppState, row: &InstanceRow, tag: Option<&str>) -> Result<Noted, ApiError> {
    let Some(tag) = tag else {
        return Err(ApiError::field(
            "tag",
            "is needed with `releaseWhenEnded`: the claim names the session by it",
        ));
    };
    if row.state != InstanceState::Claimed {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "this instance is not claimed, so no session can release it",
        ));
    }
    let is_new = state.claims.note_release_session(row, tag).await?;
    let noted = state.claims.release_session(row).await?;
    match noted {
        Some(noted) if noted == tag => Ok(Noted { is_new }),
        Some(other) => Err(ApiError::new(
            ErrorCode::Conflict,
            format!(
                "the session `{other}` releases this VM already, and there can be one: start this one without `releaseWhenEnded`"
            ),
        )),
        None => Err(ApiError::new(
            ErrorCode::Conflict,
            "this instance is not claimed any more",
        )),
    }
}

impl Noted {
    /// What became of the start: a session that does not begin releases nothing, one of which that is not known is watched.
    pub(super) async fn end(
        self,
        state: &AppState,
        row: &InstanceRow,
        started: &Result<SessionStart, ApiError>,
    ) -> Result<(), ApiError> {
        if !self.is_new {
            return Ok(());
        }
        match started {
            Ok(SessionStart::NotStarted { .. }) => state.claims.forget_release_session(row).await?,
            Ok(SessionStart::Started(_)) | Err(_) => state.claims.watch_release_session(row.id.clone()),
        }
        Ok(())
    }
}
