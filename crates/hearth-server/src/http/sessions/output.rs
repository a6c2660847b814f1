//! A session's output for a client that only reads: its bytes, or events that say more.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body as RawBody;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{Stream, StreamExt as _};
use hearth_api::error::ErrorBody;
use hearth_api::ids::InstanceId;
use hearth_api::session::{SessionBegin, SessionDropped};
use hearth_guest::client::{AgentError, SessionEvent};
use hearth_guest::exec_session::{SessionAttach, Until};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::attach::{Reading, position};
use super::shown;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::exec::{Inside, answered, enter, marked, usable};
use crate::http::extract::{Path, Query};
use crate::http::files::content::Life;
use crate::http::files::refused;
use crate::vms::pause::ResumedVm;

/// A silent session says that it is still there, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many bytes from the asked position on are not kept any more.
const DROPPED_HEADER: HeaderName = HeaderName::from_static("hearth-dropped-bytes");

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OutputQuery {
    /// The position of the first byte, counted from the first one ever printed.
    #[param(nullable = false, required = false, default = 0)]
    from: Option<u64>,
    /// At most so many of the bytes that were printed before now.
    #[param(nullable = false, required = false)]
    last: Option<u64>,
    /// Also what will be printed, until nothing can print any more.
    #[param(nullable = false, required = false, default = false)]
    follow: Option<bool>,
    /// The command waits for this client, when it prints faster than the client reads, and nothing is dropped.
    #[param(nullable = false, required = false, default = false)]
    lossless: Option<bool>,
}

/// Read a session's output
///
/// The bytes of both outputs as they were printed, from the first one that is kept; the header `hearth-dropped-bytes` says how many
/// before it are not. With `Accept: text/event-stream` events: `begin` (a `SessionBegin`), `stdout` and `stderr` with base64 data,
/// `dropped` (a `SessionDropped`), and at last `end` (the `Session`), or `error`.
#[utoipa::path(
    get,
    path = "/instances/{id}/sessions/{session}/output",
    tag = "sessions",
    params(OutputQuery),
    responses((status = 200, content((String = "application/octet-stream"), (String = "text/event-stream")), description = "What it printed"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn read_session_output(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, session)): Path<(InstanceId, String)>,
    headers: HeaderMap,
    Query(query): Query<OutputQuery>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let wanted = SessionAttach {
        session,
        from: query.from.unwrap_or_default(),
        last: query.last,
        until: if query.follow.unwrap_or(false) {
            Until::Closed
        } else {
            Until::Now
        },
        lossless: query.lossless.unwrap_or(false),
    };
    let reading = Reading::begin(&state, &row).await;
    let asked = agent.attach_session(&wanted, futures::stream::empty());
    let mut stream = answered(&state, &row, asked).await?.map_err(refused)?;
    // The first event is always there.
    let info = match stream.next().await {
        Some(Ok(SessionEvent::Info(info))) => info,
        Some(Err(error)) => return Err(reading.lost(&error).await),
        _ => {
            return Err(ApiError::unavailable(
                "the agent in the VM answered something unexpected",
            ));
        }
    };
    let position = position(&wanted, &info);
    let mut life = Life::of(&state, &row);
    let stream = stream.inspect(move |_| life.bytes_moved());
    let streaming = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    let response = if streaming {
        let begin = SessionBegin {
            session: shown(*info),
            position,
        };
        events(begin, stream, reading, resumed)
    } else {
        let dropped = info.dropped_bytes.saturating_sub(position);
        let mut response = bytes(stream, resumed).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(DROPPED_HEADER, HeaderValue::from(dropped));
        response
    };
    Ok(marked(row.state, response))
}

/// The bytes alone.
fn bytes(
    stream: impl Stream<Item = Result<SessionEvent, AgentError>> + Send + 'static,
    resumed: Option<ResumedVm>,
) -> RawBody {
    Inside::body(
        resumed,
        stream.filter_map(async |event| match event {
            Ok(SessionEvent::Stdout(bytes) | SessionEvent::Stderr(bytes)) => Some(Ok(bytes)),
            Ok(SessionEvent::Info(_) | SessionEvent::Dropped(_)) => None,
            Err(error) => Some(Err(error)),
        }),
    )
}

/// An event whose data is JSON. Plain structs: serialising them cannot fail.
fn json(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).json_data(data).unwrap_or_default()
}

fn events(
    begin: SessionBegin,
    stream: impl Stream<Item = Result<SessionEvent, AgentError>> + Send + 'static,
    reading: Reading,
    resumed: Option<ResumedVm>,
) -> Response {
    let output = |name: &str, bytes: &[u8]| Event::default().event(name).data(STANDARD.encode(bytes));
    let events = async_stream::stream! {
        let _awake = resumed;
        let mut stream = std::pin::pin!(stream);
        yield Ok::<_, Infallible>(json("begin", &begin));
        while let Some(event) = stream.next().await {
            yield Ok(match event {
                Ok(SessionEvent::Stdout(bytes)) => output("stdout", &bytes),
                Ok(SessionEvent::Stderr(bytes)) => output("stderr", &bytes),
                Ok(SessionEvent::Dropped(bytes)) => json("dropped", &SessionDropped { bytes }),
                Ok(SessionEvent::Info(info)) => json("end", &shown(*info)),
                Err(error) => {
                    let error = reading.lost(&error).await.into_detail();
                    json("error", &ErrorBody { error })
                }
            });
        }
    };
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}
