//! A command's life on a WebSocket: its input comes in, its output goes out, both at the speed of the slower side, and it does
//! not outlive the client.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use bytes::{BufMut as _, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hearth_api::exec::{CHANNEL_STDERR, CHANNEL_STDOUT, ExecExit, ExecMessage};
use hearth_api::ids::InstanceId;
use hearth_guest::client::{ExecStream, TerminalInput};
use tokio::sync::mpsc;

use super::AppState;
use super::error::ApiError;
use super::exec::show_life;
use super::exec_end::{Heard, StartedExec};
use super::terminal::guest_size;
use crate::vms::pause::ResumedVm;

/// Longest message of a client; longer ones end the command. What an agent takes as a command at most.
pub const MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// A message of input is passed on in chunks of this size.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// So many of them wait for a command that does not read.
pub const WAITING_INPUT: usize = 16;
/// A client that was told how its command ended goes by itself. One that still sends has this long to read that.
pub const LEAVING_PATIENCE: Duration = Duration::from_secs(60);
/// From one sign of life to the next: the lease is renewed, and the client is asked for one.
pub const LIFE_EVERY: Duration = Duration::from_secs(30);

/// Input of a command, on its way.
pub type Typed = mpsc::Sender<std::io::Result<TerminalInput>>;

/// A command that runs for a client.
pub struct Attached {
    /// Ends what runs when it is dropped.
    pub running: ExecStream,
    pub started: StartedExec,
    pub typed: Typed,
    /// Held for as long as the command lasts.
    pub resumed: Option<ResumedVm>,
    /// The claim whose lease is renewed meanwhile.
    pub lease: Option<InstanceId>,
    /// Whether each chunk of output says which one it is of; a terminal has one only.
    pub channels: bool,
    /// A client that has said nothing for this long, not even that it is there, is gone. `None`: one that does not take its output
    /// for some time cannot say anything either, and is waited for.
    pub patience: Option<Duration>,
}

/// The upgrade of a request for a WebSocket. A request for none is refused; `instead` says what else to do, if there is something.
pub fn websocket(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    instead: &str,
) -> Result<WebSocketUpgrade, ApiError> {
    let upgrade = upgrade.map_err(|_| {
        let message = format!("this is a WebSocket: ask for it with `Upgrade: websocket`{instead}");
        ApiError::field(".", message)
    })?;
    Ok(upgrade.max_message_size(MESSAGE_BYTES).max_frame_size(MESSAGE_BYTES))
}

impl Attached {
    /// Serves it to its end, or to the client's.
    pub async fn serve(
        mut self,
        mut client: SplitSink<WebSocket, Message>,
        mut from_client: SplitStream<WebSocket>,
        state: &AppState,
    ) {
        let exit = tokio::select! {
            exit = show(&mut self.running, &self.started, &mut client, state, self.lease.as_ref(), self.channels) => exit,
            // No client is left to answer.
            () = take(&mut from_client, self.typed, self.patience) => return,
        };
        drop(self.running);
        // Nothing runs in the VM any more: one of the pool may be paused again.
        drop(self.resumed.take());
        let Some(exit) = exit else { return };
        say_last(client, from_client, &ExecMessage::Exit(exit)).await;
    }
}

/// The last message to a client, and the end of the connection. What the client still sends is read and dropped: a connection
/// that is closed while bytes of the client lie unread is reset, and then the client may never see what was said last.
pub async fn say_last(
    mut client: SplitSink<WebSocket, Message>,
    mut from_client: SplitStream<WebSocket>,
    message: &ExecMessage,
) {
    let saying = async {
        say(&mut client, message).await;
        drop(client.close().await);
    };
    let leaving = async {
        while let Some(Ok(message)) = from_client.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
        }
    };
    let mut leaving = std::pin::pin!(leaving);
    tokio::select! {
        // However slowly it takes what was printed.
        () = saying => {}
        // A client that is gone by now has missed nothing that it waited for.
        () = &mut leaving => return,
    }
    // It does not go: then the connection is cut.
    drop(tokio::time::timeout(LEAVING_PATIENCE, leaving).await);
}

/// One message of ours that is no output.
async fn say(client: &mut SplitSink<WebSocket, Message>, message: &ExecMessage) {
    if let Ok(text) = serde_json::to_string(message) {
        drop(client.send(Message::Text(text.into())).await);
    }
}

/// Everything that the command prints, and how it ended; `None` when the client is gone.
async fn show(
    running: &mut ExecStream,
    started: &StartedExec,
    client: &mut SplitSink<WebSocket, Message>,
    state: &AppState,
    lease: Option<&InstanceId>,
    channels: bool,
) -> Option<ExecExit> {
    let mut life = tokio::time::interval(LIFE_EVERY);
    life.reset();
    let output = |channel, bytes: Bytes| Message::Binary(if channels { on_channel(channel, &bytes) } else { bytes });
    loop {
        let message = tokio::select! {
            event = running.next() => match started.heard(event).await {
                Heard::Stdout(bytes) => output(CHANNEL_STDOUT, bytes),
                Heard::Stderr(bytes) => output(CHANNEL_STDERR, bytes),
                Heard::Exit(exit) => return Some(exit),
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

/// A message of output.
pub fn on_channel(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(channel);
    message.put_slice(bytes);
    message.freeze()
}

/// What the client sends, until it is gone.
async fn take(client: &mut SplitStream<WebSocket>, typed: Typed, patience: Option<Duration>) {
    let mut typed = Some(typed);
    loop {
        let next = match patience {
            Some(patience) => tokio::time::timeout(patience, client.next()).await.ok().flatten(),
            None => client.next().await,
        };
        let Some(Ok(message)) = next else { return };
        match message {
            Message::Binary(mut bytes) => {
                while !bytes.is_empty() {
                    let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
                    pass_on(&mut typed, TerminalInput::Bytes(chunk)).await;
                }
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ExecMessage::Resize(size)) if size.is_possible() => {
                    pass_on(&mut typed, TerminalInput::Resize(guest_size(size))).await;
                }
                Ok(ExecMessage::StdinEnd) => typed = None,
                // A newer client may know more.
                _ => {}
            },
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return,
        }
    }
}

/// Nothing, when what runs reads no more: how it ended, or ends, is said by the other half.
async fn pass_on(typed: &mut Option<Typed>, input: TerminalInput) {
    if let Some(sender) = typed
        && sender.send(Ok(input)).await.is_err()
    {
        *typed = None;
    }
}
