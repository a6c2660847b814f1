//! Whole folders as tar streams, in and out. They pass through as they are.

use axum::Json;
use axum::body::Body as RawBody;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use hearth_api::file::TarUnpacked;
use hearth_api::ids::InstanceId;
use hearth_api::values::{GuestPath, Name};
use serde::Deserialize;
use utoipa::IntoParams;

use super::content::{Incoming, Life};
use super::{FileQuery, place, refused};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::exec::{Inside, answered, enter, marked, usable};
use crate::http::extract::{Path, Query};

/// The media type of a tar stream.
const TAR: &str = "application/x-tar";

/// Read a folder in a VM as a tar stream
///
/// With all that is below it, by paths relative to it. Links are not followed, and other file systems that are mounted below are not
/// entered. What could not be read is named at the end, in a global pax header with records `HEARTH.leftOut`, `HEARTH.failed` and `HEARTH.reason.N`;
/// other programs skip it.
#[utoipa::path(
    get,
    path = "/instances/{id}/files/tar",
    tag = "files",
    params(FileQuery),
    responses((status = 200, content((String = "application/x-tar")), description = "The stream"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn read_folder(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Query(query): Query<FileQuery>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let path = query.place();
    let asked = agent.read_tree(&path, query.user.as_deref());
    let stream = answered(&state, &row, asked).await?.map_err(refused)?;
    let mut life = Life::of(&state, &row);
    let bytes = stream.inspect(move |_| life.bytes_moved());
    let mut response = Inside::body(resumed, bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(TAR));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(marked(row.state, response))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UnpackQuery {
    /// The folder in the VM, made when it is missing: absolute, `~/…` for the user's home folder, or relative to `/home`.
    #[param(value_type = GuestPath)]
    path: GuestPath,
    /// The user who unpacks: a name or `uid[:gid]`.
    #[param(nullable = false, required = false, value_type = Name, default = "root")]
    user: Option<Name>,
    /// The owner of everything that is made, `user` by default: a name or `uid[:gid]`. Owners in the stream do not count.
    #[param(nullable = false, required = false, value_type = Name)]
    owner: Option<Name>,
}

/// Unpack a tar stream into a folder of a VM
///
/// The body is a plain tar stream. Files that are there are replaced, each at once; what is there besides stays. Modes, times and links
/// are kept. An entry that would land outside of the folder ends it with 422; what was unpacked before stays.
#[utoipa::path(
    put,
    path = "/instances/{id}/files/tar",
    tag = "files",
    params(UnpackQuery),
    request_body(content = String, content_type = "application/octet-stream", description = "The tar stream"),
    responses((status = 200, body = TarUnpacked, description = "What was unpacked"), (status = 409, description = "refused"), (status = 410, description = "refused"), (status = 507, description = "refused"))
)]
pub async fn write_folder(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Query(query): Query<UnpackQuery>,
    body: RawBody,
) -> Result<Json<TarUnpacked>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let path = place(&query.path);
    let body = Incoming::new(body, Life::of(&state, &row));
    let (user, owner) = (query.user.as_deref(), query.owner.as_deref());
    let done = answered(&state, &row, agent.write_tree(&path, user, owner, body.upload())).await;
    drop(resumed);
    let done = body.end(done).await?;
    Ok(Json(TarUnpacked {
        files: done.files,
        bytes: done.bytes,
        left_out: done.left_out,
        failed: done.failed,
        named: done.named,
    }))
}
