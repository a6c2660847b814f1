//! A terminal in a VM, over a WebSocket.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hearth_api::agent::TerminalSpec;
use hearth_api::agent::client::{AgentError, ExecEvent, ExecStream, TerminalInput};
use hearth_api::error::ErrorCode;
use hearth_api::exec::{ExecExit, ExecRequest};
use hearth_api::ids::InstanceId;
use hearth_api::terminal::{TerminalMessage, TerminalSize};
use hearth_api::text::{GuestPath, Name};
use hearth_core::state::InstanceState;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::exec::{Inside, enter, refused, show_life, to_exit, to_spec, usable};
use super::extract::{Path, Query};
use crate::reconcile::Awake;

/// Longest message of a client: a large paste. Longer ones end the terminal.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// Messages that wait for a command that does not read.
const WAITING_INPUT: usize = 16;
/// From one sign of life to the next: the lease is renewed, and the client is asked for one.
const LIFE_EVERY: Duration = Duration::from_secs(30);
/// A client that has said nothing for this long, not even that it is there, is gone.
const CLIENT_PATIENCE: Duration = Duration::from_secs(90);
/// What programs are told that they run in, when the client does not say.
const TERM: &str = "xterm-256color";
/// What an agent answers to a path that it does not know.
const UNKNOWN_PATH: u16 = 404;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TerminalQuery {
    /// Its lines at first.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 24)]
    rows: Option<u16>,
    /// Characters of a line at first.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 80)]
    cols: Option<u16>,
    /// What it is, as programs read it in `TERM`.
    #[param(nullable = false, required = false, value_type = String, max_length = 64, pattern = "^[A-Za-z0-9+._-]+$", default = "xterm-256color")]
    term: Option<String>,
    /// Who works in it.
    #[param(nullable = false, required = false, value_type = Name, default = "root")]
    user: Option<String>,
    /// Where.
    #[param(nullable = false, required = false, value_type = GuestPath, default = "/home")]
    cwd: Option<String>,
}

/// Open a terminal in a VM
///
/// A WebSocket. Binary messages are the terminal's bytes, both ways; text messages are a `TerminalMessage`: the client sends
/// `resize`, the server sends `exit` when the shell (`bash`, as after a login) has ended, and closes. When the client goes away,
/// everything that runs in the terminal is ended.
#[utoipa::path(
    get,
    path = "/instances/{id}/terminal",
    tag = "claims",
    params(TerminalQuery),
    responses((status = 101, description = "The terminal"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn open_terminal(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Query(query): Query<TerminalQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let upgrade =
        upgrade.map_err(|_| ApiError::field(".", "this is a WebSocket: ask for it with `Upgrade: websocket`"))?;
    let Inside { agent, awake } = enter(&state, &row).await?;
    let (typed, mut waiting) = mpsc::channel(WAITING_INPUT);
    let input = futures::stream::poll_fn(move |context| waiting.poll_recv(context));
    let running = agent.terminal(&to_terminal(query)?, input).await;
    let running = running.map_err(|error| match error {
        AgentError::Refused {
            status: UNKNOWN_PATH, ..
        } => ApiError::new(
            ErrorCode::Conflict,
            "the agent in this VM is older than terminals; build the image anew, or run commands with exec",
        ),
        other => refused(&other),
    })?;
    let lease = (row.state == InstanceState::Claimed).then_some(id);
    let terminal = Terminal {
        running,
        typed,
        _awake: awake,
    };
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES).max_frame_size(MESSAGE_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| terminal.serve(socket, &state, lease).await))
}

fn to_terminal(query: TerminalQuery) -> Result<TerminalSpec, ApiError> {
    let size = TerminalSize::default();
    let term = query.term.unwrap_or_else(|| TERM.to_owned());
    let shell = ExecRequest {
        argv: Some(["bash", "-l"].map(str::to_owned).to_vec()),
        cwd: query.cwd,
        env: Some([("TERM".to_owned(), term)].into()),
        user: query.user,
        ..ExecRequest::default()
    };
    Ok(TerminalSpec {
        size: TerminalSize {
            rows: query.rows.unwrap_or(size.rows),
            cols: query.cols.unwrap_or(size.cols),
        },
        command: to_spec(shell)?,
    })
}

struct Terminal {
    /// Ends what runs when it is dropped.
    running: ExecStream,
    typed: mpsc::Sender<std::io::Result<TerminalInput>>,
    /// Held for as long as the terminal lasts.
    _awake: Option<Awake>,
}

impl Terminal {
    async fn serve(mut self, socket: WebSocket, state: &AppState, lease: Option<InstanceId>) {
        let (mut client, from_client) = socket.split();
        let exit = tokio::select! {
            exit = show(&mut self.running, &mut client, state, lease.as_ref()) => exit,
            // Nobody is left to be told.
            () = take(from_client, &self.typed) => return,
        };
        let Some(exit) = exit else { return };
        // A client that is gone by now has missed nothing that it waited for.
        if let Ok(text) = serde_json::to_string(&TerminalMessage::Exit(exit)) {
            drop(client.send(Message::Text(text.into())).await);
        }
        drop(client.close().await);
    }
}

/// Everything that the terminal shows, and how it ended; `None` when the client is gone.
async fn show(
    running: &mut ExecStream,
    client: &mut SplitSink<WebSocket, Message>,
    state: &AppState,
    lease: Option<&InstanceId>,
) -> Option<ExecExit> {
    let mut life = tokio::time::interval(LIFE_EVERY);
    life.reset();
    loop {
        let message = tokio::select! {
            event = running.next() => match event {
                Some(Ok(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes))) => Message::Binary(bytes),
                Some(Ok(ExecEvent::End(end))) => return Some(to_exit(&end, None)),
                Some(Err(error)) => return Some(lost(error.to_string())),
                None => return Some(lost("the terminal ended without saying how".to_owned())),
            },
            _ = life.tick() => {
                if let Some(id) = lease {
                    show_life(state.store().clone(), id.clone()).await;
                }
                Message::Ping(Bytes::new())
            }
        };
        client.send(message).await.ok()?;
    }
}

fn lost(reason: String) -> ExecExit {
    ExecExit {
        exit_code: None,
        signal: None,
        duration_ms: 0,
        error: Some(reason),
    }
}

/// What the client types, until it is gone.
async fn take(mut client: SplitStream<WebSocket>, typed: &mpsc::Sender<std::io::Result<TerminalInput>>) {
    while let Ok(Some(Ok(message))) = tokio::time::timeout(CLIENT_PATIENCE, client.next()).await {
        let input = match message {
            Message::Binary(bytes) => TerminalInput::Bytes(bytes),
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(TerminalMessage::Resize(size)) if size.is_possible() => TerminalInput::Resize(size),
                // A newer client may know more.
                _ => continue,
            },
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        if typed.send(Ok(input)).await.is_err() {
            // What ran has ended; how, is told by the other half.
            return std::future::pending().await;
        }
    }
}
