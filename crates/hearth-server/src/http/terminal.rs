//! A terminal in a VM, over a WebSocket.

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use futures::StreamExt as _;
use hearth_api::error::ErrorCode;
use hearth_api::ids::InstanceId;
use hearth_api::terminal::TerminalSize;
use hearth_api::values::{GuestPath, Name, TerminalKind};
use hearth_core::state::InstanceState;
use hearth_guest::client::AgentError;
use hearth_guest::{DEFAULT_TERM, TerminalSpec};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::exec::{Inside, answered, enter, marked, refused, spec_of, usable};
use super::exec_end::StartedExec;
use super::extract::{Path, Query};
use super::socket::{Attached, WAITING_INPUT, websocket};

/// A client that has said nothing for this long, not even that it is there, is gone.
const CLIENT_PATIENCE: Duration = Duration::from_secs(90);
/// What an agent answers to a path that it does not know.
const UNKNOWN_PATH: u16 = 404;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TerminalQuery {
    /// Its lines at first.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = json!(TerminalSize::default().rows))]
    rows: Option<u16>,
    /// Characters of a line at first.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = json!(TerminalSize::default().cols))]
    cols: Option<u16>,
    /// What it is, as programs read it in `TERM`.
    #[param(nullable = false, required = false, value_type = TerminalKind, default = json!(DEFAULT_TERM))]
    term: Option<TerminalKind>,
    /// Who works in it.
    #[param(nullable = false, required = false, value_type = Name, default = "root")]
    user: Option<Name>,
    /// Where.
    #[param(nullable = false, required = false, value_type = GuestPath, default = "/home")]
    cwd: Option<GuestPath>,
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
    let upgrade = websocket(upgrade, "")?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let (typed, mut waiting) = mpsc::channel(WAITING_INPUT);
    let input = futures::stream::poll_fn(move |context| waiting.poll_recv(context));
    let spec = to_terminal(query);
    let started = StartedExec::now(&state, &row, &spec.command).await;
    let running = answered(&state, &row, agent.terminal(&spec, input)).await?;
    let running = running.map_err(|error| if is_too_old(&error) { too_old() } else { refused(&error) })?;
    let attached = Attached {
        running,
        started,
        typed,
        resumed,
        lease: (row.state == InstanceState::Claimed).then_some(id),
        channels: false,
        patience: Some(CLIENT_PATIENCE),
    };
    let at = row.state;
    let opened = upgrade.on_upgrade(async move |socket| {
        let (client, from_client) = socket.split();
        attached.serve(client, from_client, &state).await;
    });
    Ok(marked(at, opened))
}

/// Whether the agent knows nothing of terminals.
pub fn is_too_old(error: &AgentError) -> bool {
    matches!(
        error,
        AgentError::Refused {
            status: UNKNOWN_PATH,
            ..
        }
    )
}

/// What that means for the client.
pub fn too_old() -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        "the agent in this VM is older than terminals; build the image again, or run commands with exec",
    )
}

fn to_terminal(query: TerminalQuery) -> TerminalSpec {
    let size = TerminalSize::default();
    let shell = ["bash", "-l"].map(str::to_owned).to_vec();
    let mut command = spec_of(shell, query.cwd, query.user);
    let term = query.term.map_or_else(|| DEFAULT_TERM.to_owned(), String::from);
    command.env = [("TERM".to_owned(), term)].into();
    TerminalSpec {
        size: guest_size(TerminalSize {
            rows: query.rows.unwrap_or(size.rows),
            cols: query.cols.unwrap_or(size.cols),
        }),
        command,
    }
}

/// The size in the words of the agent's protocol, which is not the public API's.
pub fn guest_size(size: TerminalSize) -> hearth_guest::TerminalSize {
    hearth_guest::TerminalSize {
        rows: size.rows,
        cols: size.cols,
    }
}
