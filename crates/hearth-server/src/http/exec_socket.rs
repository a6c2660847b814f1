//! `GET /instances/{id}/exec`: a command whose input is streamed, over a WebSocket.

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use hearth_api::exec::{ExecMessage, ExecStart};
use hearth_api::ids::InstanceId;
use hearth_core::state::InstanceState;
use hearth_guest::TerminalSpec;
use hearth_guest::client::{AgentClient, AgentError, ExecStream, TerminalInput, Upload};
use tokio::sync::mpsc;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::exec::{Inside, answered, enter, marked, refused, to_spec, usable};
use super::exec_end::StartedExec;
use super::extract::{self, Path};
use super::socket::{Attached, Typed, WAITING_INPUT, say_last, websocket};
use super::terminal::{guest_size, is_too_old, too_old};
use crate::store::InstanceRow;

/// How long a client has to say what is to be run.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Run a command in a VM, with streamed input
///
/// A WebSocket. The client's first message is the text `{"start": {"request": ExecRequest, "terminal"?: {"rows", "cols"}}}`; its
/// binary messages are standard input, of any length, and the text `"stdinEnd"` ends it. The server's binary messages are output:
/// their first byte says of which (1 stdout, 2 stderr), the rest is what was printed. Its last message is the text `{"exit":
/// ExecExit}`, or `{"error": …}` as in an error reply when the command is not taken. Both directions are held back by the side that is
/// slower. With `terminal` the command runs in one, whose output is all stdout, and the client may send `{"resize": …}`. When the
/// client goes away, the command is ended with everything that it has started.
#[utoipa::path(
    get,
    path = "/instances/{id}/exec",
    tag = "claims",
    responses((status = 101, description = "The command's streams"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn attach_exec(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let upgrade = websocket(upgrade, ", or send the command with POST")?;
    let inside = enter(&state, &row).await?;
    let at = row.state;
    let opened = upgrade.on_upgrade(async move |socket| serve(socket, &state, &row, inside).await);
    Ok(marked(at, opened))
}

async fn serve(mut socket: WebSocket, state: &AppState, row: &InstanceRow, inside: Inside) {
    let Inside { agent, resumed } = inside;
    let started = match tokio::time::timeout(START_PATIENCE, first(&mut socket)).await {
        Ok(Some(Ok(start))) => begin(state, row, &agent, start).await,
        Ok(Some(Err(error))) => Err(ExecMessage::Error(error.into_detail())),
        // It went away.
        Ok(None) => return,
        Err(_) => Err(ExecMessage::Error(nothing_to_run().into_detail())),
    };
    let (client, from_client) = socket.split();
    match started {
        Ok((running, started, typed)) => {
            let attached = Attached {
                running,
                started,
                typed,
                resumed,
                lease: (row.state == InstanceState::Claimed).then(|| row.id.clone()),
                channels: true,
                patience: None,
            };
            attached.serve(client, from_client, state).await;
        }
        Err(refusal) => say_last(client, from_client, &refusal).await,
    }
}

fn nothing_to_run() -> ApiError {
    ApiError::field(
        ".",
        "the first message must be a text that says what to run: `{\"start\": …}`",
    )
}

/// What is to be run; `None` when the client goes away first.
async fn first(socket: &mut WebSocket) -> Option<Result<ExecStart, ApiError>> {
    loop {
        return match socket.recv().await?.ok()? {
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => None,
            Message::Binary(_) => Some(Err(nothing_to_run())),
            Message::Text(text) => Some(parse(&text)),
        };
    }
}

fn parse(text: &str) -> Result<ExecStart, ApiError> {
    let message: serde_json::Value =
        serde_json::from_str(text).map_err(|error| ApiError::field(".", error.to_string()))?;
    let start = message.get("start").ok_or_else(nothing_to_run)?;
    extract::parse(start.to_string().as_bytes())
}

/// Hands the command to the agent; the last message to the client when that is not taken.
async fn begin(
    state: &AppState,
    row: &InstanceRow,
    agent: &AgentClient,
    start: ExecStart,
) -> Result<(ExecStream, StartedExec, Typed), ExecMessage> {
    let ExecStart { mut request, terminal } = start;
    let stdin = request.stdin.take().unwrap_or_default();
    let spec = to_spec(request).map_err(|error| ExecMessage::Error(error.into_detail()))?;
    let started = StartedExec::now(state, row, &spec).await;
    let (typed, mut waiting) = mpsc::channel(WAITING_INPUT);
    let streamed = futures::stream::poll_fn(move |context| waiting.poll_recv(context));
    let given = futures::stream::iter([Ok(TerminalInput::Bytes(Bytes::from(stdin)))]);
    let input = given.chain(streamed);
    let running = match terminal {
        Some(size) => {
            let size = guest_size(size);
            let spec = TerminalSpec { command: spec, size };
            answered(state, row, agent.terminal(&spec, input)).await
        }
        None => {
            let input = Upload::from_stream(input.filter_map(bytes_only));
            answered(state, row, agent.exec(&spec, input)).await
        }
    };
    match running.map_err(|error| ExecMessage::Error(error.into_detail()))? {
        Ok(running) => Ok((running, started, typed)),
        Err(error) if terminal.is_some() && is_too_old(&error) => Err(ExecMessage::Error(too_old().into_detail())),
        Err(error @ AgentError::Refused { .. }) => Err(ExecMessage::Error(refused(&error).into_detail())),
        // It may have begun.
        Err(error) => Err(ExecMessage::Exit(started.lost(&error).await)),
    }
}

/// A command without a terminal has no size.
async fn bytes_only(input: std::io::Result<TerminalInput>) -> Option<std::io::Result<Bytes>> {
    match input {
        Ok(TerminalInput::Bytes(bytes)) => Some(Ok(bytes)),
        Ok(TerminalInput::Resize(_)) => None,
        Err(error) => Some(Err(error)),
    }
}
