//! Terminals: a WebSocket in two halves, so that what is typed never waits for what is shown.

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use reqwest::header::SEC_WEBSOCKET_ACCEPT;
use reqwest::{StatusCode, Upgraded};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Client;
use super::call::Call;
use super::error::{self, ClientError};
use crate::exec::ExecExit;
use crate::ids::InstanceId;
use crate::terminal::{TerminalMessage, TerminalSize};

pub(super) type Socket = WebSocketStream<Upgraded>;

/// What kind of a terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TerminalRequest {
    /// How large it is at first.
    pub size: TerminalSize,
    /// What it is, as programs read it in `TERM`; the server's choice when absent.
    pub term: Option<String>,
    /// Who works in it; root when absent.
    pub user: Option<String>,
    /// Where; `/home` when absent.
    pub cwd: Option<String>,
}

/// What a terminal has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// Bytes for the screen.
    Bytes(Bytes),
    /// How it ended; the last one.
    Exit(ExecExit),
}

/// The half that is typed at.
#[derive(Debug)]
pub struct Typing {
    socket: SplitSink<Socket, Message>,
    url: String,
}

/// The half that shows.
#[derive(Debug)]
pub struct Screen {
    socket: SplitStream<Socket>,
    url: String,
}

impl Client {
    /// Opens a terminal in an instance's VM. Dropping both halves ends everything that runs in it.
    ///
    /// # Errors
    /// As every call.
    pub async fn terminal(&self, id: &InstanceId, wanted: &TerminalRequest) -> Result<(Typing, Screen), ClientError> {
        let mut call = self
            .get(&["instances", id.as_str(), "terminal"])
            .query("rows", &wanted.size.rows.to_string())
            .query("cols", &wanted.size.cols.to_string());
        let others = [("term", &wanted.term), ("user", &wanted.user), ("cwd", &wanted.cwd)];
        for (name, value) in others {
            if let Some(value) = value {
                call = call.query(name, value);
            }
        }
        let url = self.address();
        let (typing, screen) = open_socket(self, call).await?.split();
        let typing = Typing {
            socket: typing,
            url: url.clone(),
        };
        Ok((typing, Screen { socket: screen, url }))
    }
}

/// Makes this call a WebSocket.
pub(super) async fn open_socket(client: &Client, call: Call<'_>) -> Result<Socket, ClientError> {
    let key = generate_key();
    // No time limit: it would be one of the whole connection.
    let response = call.timeout(None).upgrade(key.clone())?.open().await?;
    let url = client.address();
    let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT).cloned();
    let right = accepted.is_some_and(|accepted| accepted.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS || !right {
        return Err(ClientError::Setup {
            reason: format!("{url} opens no WebSocket: is there a proxy that takes protocol upgrades away?"),
        });
    }
    let stream = response.upgrade().await.map_err(|fault| ClientError::Interrupted {
        url,
        reason: error::chain(&fault.without_url()),
    })?;
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
}

impl Typing {
    /// Types.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn bytes(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.send(Message::Binary(bytes)).await
    }

    /// Makes the terminal larger or smaller.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), ClientError> {
        let text = serde_json::to_string(&TerminalMessage::Resize(size)).unwrap_or_default();
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

impl Screen {
    /// What comes next. After [`Shown::Exit`] nothing does.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`]: the connection is gone, and so is everything that ran in the terminal.
    pub async fn next(&mut self) -> Result<Shown, ClientError> {
        let interrupted = |reason: String| ClientError::Interrupted {
            url: self.url.clone(),
            reason,
        };
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Shown::Bytes(bytes)),
                Some(Ok(Message::Text(text))) => {
                    // A newer server may say more.
                    if let Ok(TerminalMessage::Exit(exit)) = serde_json::from_str(&text) {
                        return Ok(Shown::Exit(exit));
                    }
                }
                Some(Ok(Message::Close(_))) | None => {
                    return Err(interrupted("it was closed before the command ended".to_owned()));
                }
                Some(Ok(_)) => {}
                Some(Err(fault)) => return Err(interrupted(fault.to_string())),
            }
        }
    }
}
