//! A WebSocket in two halves, so that what goes in never waits for what comes out.

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use reqwest::header::SEC_WEBSOCKET_ACCEPT;
use reqwest::{StatusCode, Upgraded};
use serde::Serialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::Client;
use super::call::Call;
use super::error::{self, ClientError};
use super::stream;

type Socket = WebSocketStream<Upgraded>;

/// The half that goes to the server.
#[derive(Debug)]
pub(super) struct Sending {
    socket: SplitSink<Socket, Message>,
    url: String,
}

/// The half that comes from it.
#[derive(Debug)]
pub(super) struct Receiving {
    socket: SplitStream<Socket>,
    url: String,
    /// Whether it is about a VM that is still being made.
    pub(super) is_unfinished: bool,
}

/// What the server sent.
pub(super) enum Received {
    Bytes(Bytes),
    Text(Utf8Bytes),
}

/// Makes this call a WebSocket.
pub(super) async fn open(client: &Client, call: Call<'_>) -> Result<(Sending, Receiving), ClientError> {
    let key = generate_key();
    // No time limit: it would be one of the whole connection.
    let response = call.timeout(None).upgrade(key.clone())?.open().await?;
    let url = client.address();
    let is_unfinished = stream::is_unfinished(&response);
    let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT).cloned();
    let right = accepted.is_some_and(|accepted| accepted.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS || !right {
        return Err(ClientError::Setup {
            reason: format!("{url} opens no WebSocket: is there a proxy that takes protocol upgrades away?"),
        });
    }
    let upgraded = response.upgrade().await.map_err(|fault| ClientError::Interrupted {
        url: url.clone(),
        reason: error::chain(&fault.without_url()),
    })?;
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    let (sending, receiving) = socket.split();
    let sending = Sending {
        socket: sending,
        url: url.clone(),
    };
    let receiving = Receiving {
        socket: receiving,
        url,
        is_unfinished,
    };
    Ok((sending, receiving))
}

impl Sending {
    /// Sends bytes; waits until there is room for them.
    pub(super) async fn bytes(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.send(Message::Binary(bytes)).await
    }

    /// Sends a message as JSON.
    pub(super) async fn message(&mut self, message: &impl Serialize) -> Result<(), ClientError> {
        let text = serde_json::to_string(message).map_err(|fault| ClientError::Setup {
            reason: format!("the request cannot be written as JSON: {fault}"),
        })?;
        self.send(Message::Text(text.into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        let sent = self.socket.send(message).await;
        sent.map_err(|fault| ClientError::Interrupted {
            url: self.url.clone(),
            reason: fault.to_string(),
        })
    }
}

impl Receiving {
    /// What comes next. The end of the connection is an error: readers stop at the last message.
    pub(super) async fn next(&mut self) -> Result<Received, ClientError> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Received::Bytes(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Received::Text(text)),
                Some(Ok(Message::Close(_))) | None => {
                    return Err(self.interrupted("it was closed before the command ended".to_owned()));
                }
                Some(Ok(_)) => {}
                Some(Err(fault)) => return Err(self.interrupted(fault.to_string())),
            }
        }
    }

    /// The connection is gone, for this reason.
    pub(super) fn interrupted(&self, reason: String) -> ClientError {
        ClientError::Interrupted {
            url: self.url.clone(),
            reason,
        }
    }
}
