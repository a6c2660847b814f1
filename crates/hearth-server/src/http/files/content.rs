//! The content of files: read in parts, written whole. It passes through in chunks; nothing is kept here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body as RawBody, BodyDataStream, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use hearth_api::file::{FileEntry, MODE_HEADER};
use hearth_api::ids::InstanceId;
use hearth_api::values::{FileMode, GuestPath, Name};
use hearth_core::state::InstanceState;
use hearth_guest::client::{AgentError, NewFile, Upload};
use hearth_guest::files::{FileHead, Part};
use http_range_header::SyntacticallyCorrectRange;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde::Deserialize;
use tokio::sync::Mutex;
use utoipa::IntoParams;

use super::{FileQuery, mode, octal, place, refused, shown};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::exec::{Inside, answered, enter, marked, show_life, usable};
use crate::http::extract::{Path, Query};
use crate::store::{InstanceRow, Store};

/// While bytes move, the lease is renewed this often.
const LIFE_EVERY: Duration = Duration::from_secs(30);
/// What is still read of a body that was refused, so that its sender hears why: one that is cut off may not look.
const DRAINED_BYTES: usize = 4 * 1024 * 1024 * 1024;
/// For how long.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

/// Work that is a sign of life for as long as bytes move.
pub struct Life {
    store: Store,
    lease: Option<InstanceId>,
    shown: Instant,
}

impl Life {
    pub fn of(state: &AppState, row: &InstanceRow) -> Self {
        Self {
            store: state.store().clone(),
            lease: (row.state == InstanceState::Claimed).then(|| row.id.clone()),
            shown: Instant::now(),
        }
    }

    pub fn bytes_moved(&mut self) {
        if let Some(id) = &self.lease
            && self.shown.elapsed() >= LIFE_EVERY
        {
            self.shown = Instant::now();
            tokio::spawn(show_life(self.store.clone(), id.clone()));
        }
    }
}

/// Read a file in a VM
///
/// Its bytes. `Range: bytes=…` with one range gives a part of it, `If-Range` with the `ETag` of an earlier reply the whole file when it
/// has changed since. The header `hearth-file-mode` holds its permission bits. A folder is 409, and so is what has no end (a device, a
/// pipe).
#[utoipa::path(
    get,
    path = "/instances/{id}/files",
    tag = "files",
    params(FileQuery),
    responses(
        (status = 200, content((String = "application/octet-stream")), description = "All of it"),
        (status = 206, content((String = "application/octet-stream")), description = "The part"),
        (status = 409, description = "refused"), (status = 410, description = "refused"), (status = 416, description = "refused")
    )
)]
pub async fn read_file(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    headers: HeaderMap,
    Query(query): Query<FileQuery>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let part = part_of(&headers);
    let tag = tag_of(&headers);
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let path = query.place();
    let asked = agent.read_part(&path, query.user.as_deref(), part, tag.as_deref());
    let file = answered(&state, &row, asked).await?.map_err(refused)?;
    let mut life = Life::of(&state, &row);
    let bytes = file.body.inspect(move |_| life.bytes_moved());
    let mut response = Inside::body(resumed, bytes).into_response();
    describe(&mut response, &file.head);
    Ok(marked(row.state, response))
}

/// The part that a request asks for. What is no single range of bytes counts as none, as the standard has it.
pub fn part_of(headers: &HeaderMap) -> Part {
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let ranges = range.and_then(|range| http_range_header::parse_range_header(range).ok());
    match ranges.map(|ranges| ranges.into_ranges()).as_deref() {
        Some([SyntacticallyCorrectRange::FromStart(first)]) => Part::From(*first, None),
        Some([SyntacticallyCorrectRange::FromLast(bytes)]) => Part::Last(*bytes),
        Some([SyntacticallyCorrectRange::Indexed(first, last)]) => {
            Part::From(*first, Some((last - first).saturating_add(1)))
        }
        _ => Part::Whole,
    }
}

/// The file that the part is to be of. Anything but one of our own tags is no file's.
pub fn tag_of(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get(header::IF_RANGE)?.to_str().unwrap_or_default();
    Some(tag.trim_matches('"').to_owned())
}

/// The headers that say what the body is.
pub fn describe(response: &mut Response, head: &FileHead) {
    let is_part = head.length != head.size;
    if is_part {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let modified = Timestamp::from_millisecond(head.modified_unix_ms).unwrap_or_default();
    let modified = DateTimePrinter::new().timestamp_to_rfc9110_string(&modified).ok();
    let last = (head.offset + head.length).saturating_sub(1);
    let values = [
        (header::CONTENT_TYPE, Some("application/octet-stream".to_owned())),
        (header::CONTENT_LENGTH, Some(head.length.to_string())),
        (header::ACCEPT_RANGES, Some("bytes".to_owned())),
        (header::ETAG, Some(format!("\"{}\"", head.tag))),
        (header::LAST_MODIFIED, modified),
        (
            header::CONTENT_RANGE,
            is_part.then(|| format!("bytes {}-{last}/{}", head.offset, head.size)),
        ),
        // It is a guest's: no browser is to make a page of it.
        (header::X_CONTENT_TYPE_OPTIONS, Some("nosniff".to_owned())),
        (header::HeaderName::from_static(MODE_HEADER), Some(octal(head.mode))),
    ];
    for (name, value) in values {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WriteQuery {
    /// The path in the VM: absolute, `~/…` for the user's home folder, or relative to `/home`.
    #[param(value_type = GuestPath)]
    path: GuestPath,
    /// The user who writes it: a name or `uid[:gid]`.
    #[param(nullable = false, required = false, value_type = Name, default = "root")]
    user: Option<Name>,
    /// Its permission bits, octal. Without it a file that is there keeps its own, and a new one gets 0644.
    #[param(nullable = false, required = false, value_type = FileMode)]
    mode: Option<FileMode>,
    /// Its owner: a name or `uid[:gid]`. Without it a file that is there keeps its own, and a new one gets `user`.
    #[param(nullable = false, required = false, value_type = Name)]
    owner: Option<Name>,
}

/// Write a file in a VM
///
/// The body becomes the file, whole or not at all: it is written beside its place and then renamed. Folders that are missing above it
/// are made. A link is followed. A folder, or what is no plain file, is 409; a full disk is 507.
#[utoipa::path(
    put,
    path = "/instances/{id}/files",
    tag = "files",
    params(WriteQuery),
    request_body(content = String, content_type = "application/octet-stream", description = "The bytes of the file"),
    responses((status = 200, body = FileEntry, description = "The file"), (status = 409, description = "refused"), (status = 410, description = "refused"), (status = 507, description = "refused"))
)]
pub async fn write_file(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    headers: HeaderMap,
    Query(query): Query<WriteQuery>,
    body: RawBody,
) -> Result<Json<FileEntry>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(ApiError::field(
            ".",
            "a part of a file cannot be written: send all of it, without Content-Range",
        ));
    }
    let wanted = NewFile {
        user: query.user.as_deref(),
        mode: mode(query.mode.as_deref())?,
        owner: query.owner.as_deref(),
    };
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let path = place(&query.path);
    let body = Incoming::new(body, Life::of(&state, &row));
    let entry = answered(&state, &row, agent.replace_file(&path, wanted, body.upload())).await;
    drop(resumed);
    body.end(entry).await.map(|entry| Json(shown(entry)))
}

/// A request's body on its way into a VM.
pub struct Incoming(Arc<Mutex<(BodyDataStream, Life)>>);

impl Incoming {
    pub fn new(body: RawBody, life: Life) -> Self {
        Self(Arc::new(Mutex::new((body.into_data_stream(), life))))
    }

    /// One whose sending is no sign of life.
    pub fn unshown(state: &AppState, body: RawBody) -> Self {
        let life = Life {
            store: state.store().clone(),
            lease: None,
            shown: Instant::now(),
        };
        Self::new(body, life)
    }

    pub fn upload(&self) -> Upload {
        let chunks = futures::stream::unfold(Arc::clone(&self.0), async |body| {
            let chunk = {
                let mut body = body.lock().await;
                body.1.bytes_moved();
                body.0.next().await
            };
            chunk.map(|chunk: Result<Bytes, _>| (chunk.map_err(std::io::Error::other), body))
        });
        Upload::from_stream(chunks)
    }

    /// What came of it. Of a body that was refused the rest is read for a while.
    pub async fn end<T>(self, done: Result<Result<T, AgentError>, ApiError>) -> Result<T, ApiError> {
        let refusal = match done {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => refused(error),
            Err(error) => error,
        };
        self.drain().await;
        Err(refusal)
    }

    /// Reads the rest of a body that was refused, for a while.
    pub async fn drain(&self) {
        let drained = async {
            let mut body = self.0.lock().await;
            let mut left = DRAINED_BYTES;
            while let Some(Ok(chunk)) = body.0.next().await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    break;
                }
            }
        };
        // Over when its time is up, too.
        drop(tokio::time::timeout(DRAIN_PATIENCE, drained).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_bytes_is_a_part_and_everything_else_is_the_whole() {
        for (range, part) in [
            ("bytes=0-0", Part::From(0, Some(1))),
            ("bytes=5-", Part::From(5, None)),
            ("bytes=-7", Part::Last(7)),
            ("bytes=0-18446744073709551615", Part::From(0, Some(u64::MAX))),
            ("bytes=5-4", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("lines=1-2", Part::Whole),
            ("nonsense", Part::Whole),
        ] {
            let headers = [(header::RANGE, HeaderValue::from_static(range))].into_iter().collect();
            assert_eq!(part_of(&headers), part, "{range}");
        }
    }
}
