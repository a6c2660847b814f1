//! Commands whose input is streamed: a WebSocket in two halves, so that what goes in never waits for what comes out.

use bytes::{Buf as _, Bytes};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::error::{self, ClientError};
use super::stream::ExecEvent;
use super::terminal::Socket;
use super::{Client, terminal};
use crate::error::{ErrorBody, ErrorCode};
use crate::exec::{CHANNEL_STDERR, CHANNEL_STDOUT, ExecMessage, ExecStart};
use crate::ids::InstanceId;
use crate::terminal::TerminalSize;

/// The half that the command reads from.
#[derive(Debug)]
pub struct ExecInput {
    socket: SplitSink<Socket, Message>,
    url: String,
}

/// The half that it prints to.
#[derive(Debug)]
pub struct ExecOutput {
    socket: SplitStream<Socket>,
    url: String,
}

impl Client {
    /// Runs a command that reads what is sent to it. Dropping both halves ends it with everything that it has started.
    ///
    /// # Errors
    /// As every call; a server that is older than this answers with 405.
    pub async fn exec_attached(
        &self,
        id: &InstanceId,
        start: &ExecStart,
    ) -> Result<(ExecInput, ExecOutput), ClientError> {
        let call = self.get(&["instances", id.as_str(), "exec"]);
        let (sink, source) = terminal::open_socket(self, call).await?.split();
        let url = self.address();
        let mut input = ExecInput {
            socket: sink,
            url: url.clone(),
        };
        input.say(&ExecMessage::Start(Box::new(start.clone()))).await?;
        Ok((input, ExecOutput { socket: source, url }))
    }
}

impl ExecInput {
    /// Bytes for its standard input; waits until there is room for them.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn bytes(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.send(Message::Binary(bytes)).await
    }

    /// Its standard input ends here.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn end(&mut self) -> Result<(), ClientError> {
        self.say(&ExecMessage::StdinEnd).await
    }

    /// Its terminal is this large now.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), ClientError> {
        self.say(&ExecMessage::Resize(size)).await
    }

    async fn say(&mut self, message: &ExecMessage) -> Result<(), ClientError> {
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

impl ExecOutput {
    /// What comes next. After [`ExecEvent::Exit`] nothing does.
    ///
    /// # Errors
    /// The server's refusal, when it does not take the command; [`ClientError::Interrupted`] when the connection is gone, and with
    /// it the command.
    pub async fn next(&mut self) -> Result<ExecEvent, ClientError> {
        let interrupted = |reason: String| ClientError::Interrupted {
            url: self.url.clone(),
            reason,
        };
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(mut bytes))) => match bytes.first().copied() {
                    Some(CHANNEL_STDOUT) => {
                        bytes.advance(1);
                        return Ok(ExecEvent::Stdout(bytes));
                    }
                    Some(CHANNEL_STDERR) => {
                        bytes.advance(1);
                        return Ok(ExecEvent::Stderr(bytes));
                    }
                    // A newer server may have more of them.
                    _ => {}
                },
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(ExecMessage::Exit(exit)) => return Ok(ExecEvent::Exit(exit)),
                    Ok(ExecMessage::Error(detail)) => {
                        let status = status_of(detail.code);
                        let body = serde_json::to_vec(&ErrorBody { error: detail }).unwrap_or_default();
                        return Err(error::from_reply(status, &body, None, None));
                    }
                    _ => {}
                },
                Some(Ok(Message::Close(_))) | None => {
                    return Err(interrupted("it was closed before the command ended".to_owned()));
                }
                Some(Ok(_)) => {}
                Some(Err(fault)) => return Err(interrupted(fault.to_string())),
            }
        }
    }
}

/// The status that the refusal would have had before the connection became a WebSocket.
fn status_of(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::Unauthorized => 401,
        ErrorCode::Forbidden => 403,
        ErrorCode::NotFound => 404,
        ErrorCode::MethodNotAllowed => 405,
        ErrorCode::Conflict => 409,
        ErrorCode::Gone => 410,
        ErrorCode::PayloadTooLarge => 413,
        ErrorCode::ValidationError => 422,
        ErrorCode::TooManyRequests => 429,
        ErrorCode::InternalError => 500,
        ErrorCode::Unavailable => 503,
    }
}
