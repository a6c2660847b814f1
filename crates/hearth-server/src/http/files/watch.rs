//! What changes in a folder of a VM, as events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use hearth_api::file::{FileChange, FileChangeKind};
use hearth_api::ids::InstanceId;
use hearth_api::values::{GuestPath, Name};
use hearth_guest::files::{Change, ChangeKind};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{place, refused};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::exec::{Inside, answered, enter, marked, usable};
use crate::http::extract::{Path, Query};

/// Where nothing changes, a client learns this often that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// The folder, or file, in the VM: absolute, `~/…` for the user's home folder, or relative to `/home`.
    #[param(value_type = GuestPath)]
    path: GuestPath,
    /// The user who watches: a name or `uid[:gid]`.
    #[param(nullable = false, required = false, value_type = Name, default = "root")]
    user: Option<Name>,
    /// Whether everything below the folder is watched, too.
    #[param(nullable = false, required = false, default = false)]
    recursive: Option<bool>,
}

/// Watch a folder in a VM
///
/// Events whose data is a `FileChange`. The first one, `start`, comes when changes are being watched. `overflow` says that there were
/// more changes than the VM's kernel keeps, or more folders than it watches: look at the folder anew. `end` is the last one: what is
/// watched is gone. Watching does not renew the lease.
#[utoipa::path(
    get,
    path = "/instances/{id}/files/watch",
    tag = "files",
    params(WatchQuery),
    responses((status = 200, content((String = "text/event-stream")), description = "The changes as they happen"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn watch_files(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Query(query): Query<WatchQuery>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let path = place(&query.path);
    let asked = agent.watch_files(&path, query.user.as_deref(), query.recursive.unwrap_or(false));
    let mut changes = answered(&state, &row, asked).await?.map_err(refused)?;
    let events = async_stream::stream! {
        // A VM of the pool runs for as long as somebody watches.
        let _awake = resumed;
        while let Some(change) = changes.next().await {
            match change {
                Ok(change) => {
                    let Some(change) = shown(change) else { continue };
                    yield Ok::<_, Infallible>(Event::default().event(change.kind.name()).json_data(&change).unwrap_or_default());
                }
                Err(error) => {
                    tracing::info!(%error, "a watcher in a VM was lost");
                    let error = ApiError::unavailable("the connection to the VM was lost").into_detail();
                    let body = hearth_api::error::ErrorBody { error };
                    yield Ok(Event::default().event("error").json_data(&body).unwrap_or_default());
                    return;
                }
            }
        }
    };
    let events = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok(marked(row.state, events.into_response()))
}

/// `None` for what a newer agent says.
fn shown(change: Change) -> Option<FileChange> {
    Some(FileChange {
        kind: match change.kind {
            ChangeKind::Started => FileChangeKind::Start,
            ChangeKind::Created => FileChangeKind::Create,
            ChangeKind::Written => FileChangeKind::Write,
            ChangeKind::Removed => FileChangeKind::Remove,
            ChangeKind::Renamed => FileChangeKind::Rename,
            ChangeKind::Attributes => FileChangeKind::Chmod,
            ChangeKind::Overflow => FileChangeKind::Overflow,
            ChangeKind::Ended => FileChangeKind::End,
            ChangeKind::Unknown => return None,
        },
        path: change.path,
        from: change.from,
        is_directory: change.is_folder,
    })
}
