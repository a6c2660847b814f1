//! A client that reads a session, and sends it input: over a WebSocket. It comes and goes as it likes.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hearth_api::error::ErrorCode;
use hearth_api::exec::{CHANNEL_STDERR, CHANNEL_STDOUT};
use hearth_api::ids::{InstanceId, VmId};
use hearth_api::session::{ReadUntil, SessionBegin, SessionDropped, SessionMessage};
use hearth_core::state::InstanceState;
use hearth_guest::client::{AgentError, SessionEvent, SessionInput, SessionStream};
use hearth_guest::exec_session::{SessionAttach, SessionInfo, Until};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use utoipa::IntoParams;

use super::shown;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::exec::{Inside, answered, enter, marked, show_life, usable};
use crate::http::exec_end::{RETURN_PATIENCE, what_happened};
use crate::http::extract::{Path, Query};
use crate::http::files::refused;
use crate::http::socket::{CHUNK_BYTES, LEAVING_PATIENCE, LIFE_EVERY, WAITING_INPUT, on_channel, websocket};
use crate::http::terminal::guest_size;
use crate::store::InstanceRow;
use crate::vms::connections::Connections;
use crate::vms::lost::{Became, Given};
use crate::vms::pause::ResumedVm;

/// A client that has said nothing for this long, not even that it is there, is gone.
const CLIENT_PATIENCE: Duration = Duration::from_secs(90);

/// How long input of a client that has left is passed on.
const PASSING: Duration = Duration::from_millis(300);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AttachQuery {
    /// The position of the first byte that is sent, counted from the first one ever printed.
    #[param(nullable = false, required = false, default = 0)]
    from: Option<u64>,
    /// At most so many of the bytes that were printed before now.
    #[param(nullable = false, required = false)]
    last: Option<u64>,
    /// For how long: `now`, what there is; `ended`, until its first process has ended; `closed`, until nothing can print any more.
    #[param(nullable = false, required = false, default = "ended")]
    until: Option<ReadUntil>,
    /// The command waits for this client, when it prints faster than the client reads, and nothing is dropped.
    #[param(nullable = false, required = false, default = false)]
    lossless: Option<bool>,
}

/// Reads of a session that the agent was asked for.
pub struct Reading {
    connections: Connections,
    vm: VmId,
    given: Given,
}

impl Reading {
    /// It begins now.
    pub async fn begin(state: &AppState, row: &InstanceRow) -> Self {
        Self {
            connections: state.connections.clone(),
            vm: row.vm.clone(),
            given: Given {
                at: Instant::now(),
                boot: state.connections.known_boot(&row.vm).await,
                text: String::new(),
            },
        }
    }

    /// The agent broke off: what that means for the session.
    pub async fn lost(&self, error: &AgentError) -> ApiError {
        tracing::info!(vm = %self.vm, %error, "an agent was lost while a session was read");
        let became = self.connections.find_out(&self.vm, &self.given, RETURN_PATIENCE).await;
        let gone = |why: String| ApiError::new(ErrorCode::Gone, why);
        match became {
            Became::ConnectionLost => {
                ApiError::unavailable("the connection to the agent in the VM was lost; the session runs on: attach to it again")
            }
            Became::AgentDied => gone(
                "the agent in the VM died, and was started again: its sessions are gone. What ran in them may still run, and is \
                 listed with all processes of the VM"
                    .to_owned(),
            ),
            Became::Saved => gone(
                "the VM was paused to the disk; the session continues when the VM is resumed: attach to it again".to_owned(),
            ),
            silent @ Became::Silent(_) => ApiError::unavailable(what_happened(silent)),
            other => gone(what_happened(other)),
        }
    }
}

/// Attach to a session
///
/// A WebSocket. The server's first message is the text `{"begin": {"session", "position"}}`; its binary messages are output: their
/// first byte says of which (1 stdout, 2 stderr), the rest is what was printed. What is not kept any more is the text `{"dropped":
/// {"bytes"}}`. Its last message is `{"end": Session}`, or `{"error": …}` when the VM or its agent can say no more. The client's binary messages
/// are input, the text `"stdinEnd"` ends it for all clients, `{"resize": …}` changes the terminal's size. Any number of clients
/// may be attached at once. No client holds up the command or another client, unless it asks for `lossless`: one that is too slow
/// loses output, and is told how much. When a client goes, the session stays.
#[utoipa::path(
    get,
    path = "/instances/{id}/sessions/{session}/attach",
    tag = "sessions",
    params(AttachQuery),
    responses((status = 101, description = "The session's streams"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn attach_session(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, session)): Path<(InstanceId, String)>,
    Query(query): Query<AttachQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let upgrade = websocket(upgrade, ", or read the session's `output`")?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let (typed, mut waiting) = mpsc::channel(WAITING_INPUT);
    let input = futures::stream::poll_fn(move |context| waiting.poll_recv(context));
    let wanted = wanted(session, &query);
    let reading = Reading::begin(&state, &row).await;
    let stream = answered(&state, &row, agent.attach_session(&wanted, input)).await?;
    let stream = stream.map_err(refused)?;
    let client = Attached {
        stream,
        wanted,
        reading,
        resumed,
        lease: (row.state == InstanceState::Claimed).then_some(id),
    };
    let opened = upgrade.on_upgrade(async move |socket| client.serve(socket, typed, &state).await);
    Ok(marked(row.state, opened))
}

fn wanted(session: String, query: &AttachQuery) -> SessionAttach {
    SessionAttach {
        session,
        from: query.from.unwrap_or_default(),
        last: query.last,
        until: match query.until.unwrap_or_default() {
            ReadUntil::Now => Until::Now,
            ReadUntil::Ended => Until::Ended,
            ReadUntil::Closed => Until::Closed,
        },
        lossless: query.lossless.unwrap_or(false),
    }
}

/// Where the first byte is, by what the agent said of the session when it took the reader.
pub fn position(wanted: &SessionAttach, info: &SessionInfo) -> u64 {
    let newest = wanted.last.map_or(0, |last| info.output_bytes.saturating_sub(last));
    wanted.from.max(newest).min(info.output_bytes)
}

struct Attached {
    stream: SessionStream,
    wanted: SessionAttach,
    reading: Reading,
    /// A VM of the pool runs for as long as somebody is attached.
    resumed: Option<ResumedVm>,
    /// The claim whose lease is renewed meanwhile.
    lease: Option<InstanceId>,
}

type Typed = mpsc::Sender<std::io::Result<SessionInput>>;

impl Attached {
    async fn serve(mut self, socket: WebSocket, typed: Typed, state: &AppState) {
        let (mut client, mut from_client) = socket.split();
        let has_left = {
            let taking = take(&mut from_client, typed);
            let showing = self.show(&mut client, state);
            tokio::select! {
                shown = showing => match shown {
                    Some(()) => false,
                    None => return,
                },
                () = taking => true,
            }
        };
        if has_left {
            // What it sent last is on its way into the VM: to drop the stream would take it back.
            let passing = async { while self.stream.next().await.is_some() {} };
            drop(tokio::time::timeout(PASSING, passing).await);
            return;
        }
        drop(self.stream);
        drop(self.resumed);
        drop(client.close().await);
        // What it still sends is read: a connection that is closed before that is reset, and it may never see what was said last.
        let leaving = async {
            while let Some(Ok(message)) = from_client.next().await {
                if matches!(message, Message::Close(_)) {
                    break;
                }
            }
        };
        drop(tokio::time::timeout(LEAVING_PATIENCE, leaving).await);
    }

    /// Everything of the session; `None` when the client is gone.
    async fn show(&mut self, client: &mut SplitSink<WebSocket, Message>, state: &AppState) -> Option<()> {
        let mut life = tokio::time::interval(LIFE_EVERY);
        life.reset();
        let mut started = false;
        loop {
            let event = tokio::select! {
                event = self.stream.next() => event,
                _ = life.tick() => {
                    if let Some(id) = &self.lease {
                        show_life(state.store().clone(), id.clone()).await;
                    }
                    client.send(Message::Ping(Bytes::new())).await.ok()?;
                    continue;
                }
            };
            let message = match event {
                Some(Ok(SessionEvent::Stdout(bytes))) => Message::Binary(on_channel(CHANNEL_STDOUT, &bytes)),
                Some(Ok(SessionEvent::Stderr(bytes))) => Message::Binary(on_channel(CHANNEL_STDERR, &bytes)),
                Some(Ok(SessionEvent::Dropped(bytes))) => text(&SessionMessage::Dropped(SessionDropped { bytes }))?,
                Some(Ok(SessionEvent::Info(info))) if !started => {
                    started = true;
                    let position = position(&self.wanted, &info);
                    let session = shown(*info);
                    text(&SessionMessage::Begin(Box::new(SessionBegin { session, position })))?
                }
                Some(Ok(SessionEvent::Info(info))) => {
                    let end = text(&SessionMessage::End(Box::new(shown(*info))))?;
                    return client.send(end).await.ok();
                }
                Some(Err(error)) => {
                    let error = self.reading.lost(&error).await.into_detail();
                    return client.send(text(&SessionMessage::Error(error))?).await.ok();
                }
                // Such a stream always has an end.
                None => return Some(()),
            };
            client.send(message).await.ok()?;
        }
    }
}

fn text(message: &SessionMessage) -> Option<Message> {
    Some(Message::Text(serde_json::to_string(message).ok()?.into()))
}

/// What the client sends, until it is gone.
async fn take(client: &mut SplitStream<WebSocket>, typed: Typed) {
    loop {
        let next = tokio::time::timeout(CLIENT_PATIENCE, client.next()).await;
        let Ok(Some(Ok(message))) = next else { return };
        let input = match message {
            Message::Binary(mut bytes) => {
                while !bytes.is_empty() {
                    let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
                    // Fails when the session takes no more: how it ended is said by the other half.
                    drop(typed.send(Ok(SessionInput::Bytes(chunk))).await);
                }
                continue;
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(SessionMessage::Resize(size)) if size.is_possible() => SessionInput::Resize(guest_size(size)),
                Ok(SessionMessage::StdinEnd) => SessionInput::End,
                // A newer client may know more.
                _ => continue,
            },
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        drop(typed.send(Ok(input)).await);
    }
}
