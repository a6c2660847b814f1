//! Files in a VM: what is there, what is moved and removed. Their content is in [`content`], whole folders are in [`tree`].
//!
//! The agent does it, as the user that is named and with that user's permissions; here it is only asked, and what it refuses is said
//! in the API's own way.

pub mod content;
pub mod tree;
pub mod watch;

use axum::Json;
use axum::extract::State;
use hearth_api::error::ErrorCode;
use hearth_api::file::{FileEntry, FileKind, FileList, FileRemoved, MakeDirectory, MoveFile};
use hearth_api::ids::InstanceId;
use hearth_api::values::{GuestPath, Name};
use hearth_core::plain_text::plain_lines;
use hearth_guest::client::{AgentError, NewFile};
use hearth_guest::files::{Entry, EntryKind, MAX_ENTRIES};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::exec::{Inside, answered, enter, usable};
use super::extract::{Body, Path, Query};
use crate::store::InstanceRow;
use crate::vms::pause::ResumedVm;

/// Where paths that are not absolute begin, as a command does.
const HOME: &str = "/home/";
/// The permission bits that there are.
const MODE_BITS: u32 = 0o7777;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FileQuery {
    /// The path in the VM: absolute, `~/…` for the user's home folder, or relative to `/home`.
    #[param(value_type = GuestPath)]
    path: GuestPath,
    /// The user who does it and whose permissions count: a name or `uid[:gid]`.
    #[param(nullable = false, required = false, value_type = Name, default = "root")]
    user: Option<Name>,
}

impl FileQuery {
    fn place(&self) -> String {
        place(&self.path)
    }
}

/// The same path as the agent takes it.
fn place(path: &str) -> String {
    if path.starts_with('/') || path == "~" || path.starts_with("~/") {
        path.to_owned()
    } else {
        format!("{HOME}{path}")
    }
}

/// Permission bits from their octal digits, which the schema has checked.
fn mode(text: Option<&str>) -> Result<Option<u32>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= MODE_BITS);
    bits.map(Some)
        .ok_or_else(|| ApiError::field("mode", "must be octal permission bits, as in 0644"))
}

/// The octal digits of permission bits.
fn octal(mode: u32) -> String {
    format!("{mode:04o}")
}

fn shown(entry: Entry) -> FileEntry {
    FileEntry {
        name: entry.name,
        name_base64: entry.name_base64,
        path: entry.path,
        kind: match entry.kind {
            EntryKind::File => FileKind::File,
            EntryKind::Directory => FileKind::Directory,
            EntryKind::Symlink => FileKind::Symlink,
            EntryKind::Other => FileKind::Other,
        },
        size: entry.size,
        mode: octal(entry.mode),
        uid: entry.uid,
        gid: entry.gid,
        owner: entry.owner,
        group: entry.group,
        // A guest may set any time on a file; what no date can be is the beginning of all.
        modified_at: Timestamp::from_millisecond(entry.modified_unix_ms).unwrap_or_default(),
        symlink_target: entry.target,
    }
}

/// What the agent refuses, with its own sentence.
pub fn refused(error: AgentError) -> ApiError {
    let AgentError::Refused { status, message, code } = error else {
        return ApiError::unavailable(error.to_string());
    };
    let code = match (status, code) {
        // A path of the protocol that it does not know.
        (404, None) => {
            return ApiError::new(
                ErrorCode::Conflict,
                "the agent in this VM is older than this operation; build the image again, or work with commands",
            );
        }
        (404, _) => ErrorCode::NotFound,
        (403, _) => ErrorCode::Forbidden,
        (409, _) => ErrorCode::Conflict,
        (416, _) => ErrorCode::RangeNotSatisfiable,
        (507, _) => ErrorCode::InsufficientStorage,
        (400, _) => ErrorCode::ValidationError,
        _ => return ApiError::unavailable(format!("the agent in the VM refused ({status}): {message}")),
    };
    // It may quote what was sent.
    ApiError::new(code, plain_lines(&message).join(" "))
}

/// What the agent answers to a request that ends with its answer.
pub async fn ask<T>(
    state: &AppState,
    row: &InstanceRow,
    resumed: Option<ResumedVm>,
    asked: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, ApiError> {
    let answer = answered(state, row, asked).await?;
    drop(resumed);
    answer.map_err(refused)
}

/// Look at a file in a VM
///
/// Links are not followed.
#[utoipa::path(
    get,
    path = "/instances/{id}/files/stat",
    tag = "files",
    params(FileQuery),
    responses((status = 200, body = FileEntry, description = "What is there"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn stat_file(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Query(query): Query<FileQuery>,
) -> Result<Json<FileEntry>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let path = query.place();
    let entry = ask(&state, &row, resumed, agent.entry(&path, query.user.as_deref())).await?;
    Ok(Json(shown(entry)))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// The folder in the VM: absolute, `~/…` for the user's home folder, or relative to `/home`.
    #[param(value_type = GuestPath)]
    path: GuestPath,
    /// The user who reads it: a name or `uid[:gid]`.
    #[param(nullable = false, required = false, value_type = Name, default = "root")]
    user: Option<Name>,
    /// How many levels of folders.
    #[param(nullable = false, minimum = 1, maximum = 100, default = 1)]
    depth: Option<u32>,
    /// At most so many entries.
    #[param(nullable = false, minimum = 1, maximum = 10_000, default = 10_000)]
    limit: Option<usize>,
}

/// List a folder in a VM
///
/// Links below it are not followed. A folder with more than `limit` entries is cut, and `truncated` says so.
#[utoipa::path(
    get,
    path = "/instances/{id}/files/list",
    tag = "files",
    params(ListQuery),
    responses((status = 200, body = FileList, description = "What it holds"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn list_files(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Query(query): Query<ListQuery>,
) -> Result<Json<FileList>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let path = place(&query.path);
    let (depth, limit) = (query.depth.unwrap_or(1), query.limit.unwrap_or(MAX_ENTRIES));
    let asked = agent.list_folder(&path, query.user.as_deref(), depth, limit);
    let list = ask(&state, &row, resumed, asked).await?;
    Ok(Json(FileList {
        items: list.items.into_iter().map(shown).collect(),
        truncated: list.truncated,
        unreadable: list.unreadable,
    }))
}

/// Make a folder in a VM
///
/// With what is missing above it. What is there already is 409, whatever it is.
#[utoipa::path(
    post,
    path = "/instances/{id}/files/mkdir",
    tag = "files",
    request_body = MakeDirectory,
    responses((status = 200, body = FileEntry, description = "The folder"), (status = 409, description = "refused"), (status = 410, description = "refused"), (status = 507, description = "refused"))
)]
pub async fn make_directory(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Body(body): Body<MakeDirectory>,
) -> Result<Json<FileEntry>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let wanted = NewFile {
        user: body.user.as_deref(),
        mode: mode(body.mode.as_deref())?,
        owner: body.owner.as_deref(),
    };
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let path = place(&body.path);
    let entry = ask(&state, &row, resumed, agent.make_folder(&path, wanted)).await?;
    Ok(Json(shown(entry)))
}

/// Move or rename a file in a VM
///
/// What is there at the new path is 409, unless `replace` is set.
#[utoipa::path(
    post,
    path = "/instances/{id}/files/move",
    tag = "files",
    request_body = MoveFile,
    responses((status = 200, body = FileEntry, description = "What was moved, at its new path"), (status = 409, description = "refused"), (status = 410, description = "refused"), (status = 507, description = "refused"))
)]
pub async fn move_file(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Body(body): Body<MoveFile>,
) -> Result<Json<FileEntry>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let (path, to) = (place(&body.path), place(&body.to));
    let asked = agent.move_entry(&path, &to, body.user.as_deref(), body.replace);
    let entry = ask(&state, &row, resumed, asked).await?;
    Ok(Json(shown(entry)))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RemoveQuery {
    /// The path in the VM: absolute, `~/…` for the user's home folder, or relative to `/home`.
    #[param(value_type = GuestPath)]
    path: GuestPath,
    /// The user who removes it: a name or `uid[:gid]`.
    #[param(nullable = false, required = false, value_type = Name, default = "root")]
    user: Option<Name>,
    /// Whether a folder is removed with what it holds.
    #[param(nullable = false, required = false, default = false)]
    recursive: Option<bool>,
}

/// Remove a file in a VM
///
/// A link is removed, and not what it leads to. A folder that is not empty is 409, unless `recursive` is set.
#[utoipa::path(
    delete,
    path = "/instances/{id}/files",
    tag = "files",
    params(RemoveQuery),
    responses((status = 200, body = FileRemoved, description = "It is gone"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn remove_file(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Query(query): Query<RemoveQuery>,
) -> Result<Json<FileRemoved>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let path = place(&query.path);
    let recursive = query.recursive.unwrap_or(false);
    let asked = agent.remove_entry(&path, query.user.as_deref(), recursive);
    ask(&state, &row, resumed, asked).await?;
    Ok(Json(FileRemoved {
        removed: true,
        path: query.path.into(),
    }))
}
