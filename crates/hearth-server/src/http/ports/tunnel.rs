//! A raw connection to a port in a VM, over a WebSocket: bytes are binary messages, the end of a direction is a text message.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hearth_api::ids::InstanceId;
use hearth_api::port::TunnelMessage;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::connect;
use super::watched::Watched;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::exec::{Inside, enter, usable};
use crate::http::extract::Path;
use crate::http::socket::websocket;

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;
/// From one sign of life to the next, so that proxies on the way keep a silent connection.
const LIFE_EVERY: Duration = Duration::from_secs(30);
/// How long a client may take to notice the end.
const LEAVING_PATIENCE: Duration = Duration::from_secs(10);

/// Connect to a port in a VM
///
/// A WebSocket. Binary messages are the connection's bytes, both ways; the text messages are a `TunnelMessage`: `end` says that the sender
/// sends no more, `broken` that the connection broke off. When the client goes away, so does the connection. Where nothing listens the answer is 502.
#[utoipa::path(
    get,
    path = "/instances/{id}/tcp/{port}",
    tag = "ports",
    responses((status = 101, description = "The connection"), (status = 409, description = "refused"), (status = 410, description = "refused"), (status = 502, description = "refused"))
)]
pub async fn open_tunnel(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, port)): Path<(InstanceId, u16)>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    if port == 0 {
        return Err(ApiError::field("port", "must be from 1 to 65535"));
    }
    let upgrade = websocket(upgrade, "")?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let watched = Watched::new(&state, &row, resumed);
    let stream = connect(&state, &row, &agent, port).await?;
    Ok(opened(upgrade, stream, watched))
}

/// The WebSocket that carries this stream.
pub fn opened(
    upgrade: WebSocketUpgrade,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    watched: Watched,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let (to_client, mut from_client) = socket.split();
        let (reader, writer) = tokio::io::split(stream);
        let client_ended = CancellationToken::new();
        tokio::select! {
            () = show(reader, to_client, &client_ended, &watched) => {}
            // No client is left to tell.
            () = take(&mut from_client, writer, &client_ended, &watched) => return,
        }
        // What the client still sends is read: a connection that is closed while bytes lie unread is reset, and what was said last is lost.
        let leaving = async { while let Some(Ok(_)) = from_client.next().await {} };
        drop(tokio::time::timeout(LEAVING_PATIENCE, leaving).await);
    })
}

/// What the VM sends, to its end; and then the connection's end, when the client has ended its direction, too.
async fn show(
    mut reader: impl AsyncRead + Unpin,
    mut client: SplitSink<WebSocket, Message>,
    client_ended: &CancellationToken,
    watched: &Watched,
) {
    let mut life = tokio::time::interval(LIFE_EVERY);
    life.reset();
    let mut buffer = vec![0; READ_BYTES];
    let mut reads = true;
    loop {
        let message = tokio::select! {
            read = reader.read(&mut buffer), if reads => match read {
                Ok(0) => {
                    reads = false;
                    text(&TunnelMessage::End)
                }
                Ok(read) => {
                    watched.moved();
                    Message::Binary(Bytes::copy_from_slice(&buffer[..read]))
                }
                Err(error) => {
                    let message = format!("the connection to the VM broke off: {error}");
                    drop(client.send(text(&TunnelMessage::Broken { message })).await);
                    break;
                }
            },
            () = client_ended.cancelled(), if !reads => break,
            // A client with an open connection is at work, however silent it is.
            _ = life.tick() => {
                watched.moved();
                Message::Ping(Bytes::new())
            }
        };
        if client.send(message).await.is_err() {
            return;
        }
    }
    drop(client.close().await);
}

fn text(message: &TunnelMessage) -> Message {
    // Our own type always has a JSON form.
    Message::Text(serde_json::to_string(message).unwrap_or_default().into())
}

/// What the client sends, until it is gone.
async fn take(
    client: &mut SplitStream<WebSocket>,
    mut writer: impl AsyncWrite + Unpin,
    ended: &CancellationToken,
    watched: &Watched,
) {
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Binary(bytes) if !ended.is_cancelled() => {
                watched.moved();
                // What the VM does not take any more is dropped; what it still says is passed on.
                if writer.write_all(&bytes).await.is_err() {
                    ended.cancel();
                }
            }
            Message::Text(text) if matches!(serde_json::from_str(&text), Ok(TunnelMessage::End)) => {
                drop(writer.shutdown().await);
                ended.cancel();
            }
            Message::Close(_) => return,
            _ => {}
        }
    }
}
