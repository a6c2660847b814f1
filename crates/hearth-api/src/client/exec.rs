//! Commands whose input is streamed: a WebSocket in two halves, so that what goes in never waits for what comes out.

use bytes::{Buf as _, Bytes};

use super::Client;
use super::error::{self, ClientError};
use super::socket::{self, Received, Receiving, Sending};
use super::stream::ExecEvent;
use crate::error::{ErrorBody, ErrorCode, ErrorDetail};
use crate::exec::{CHANNEL_STDERR, CHANNEL_STDOUT, ExecMessage, ExecStart};
use crate::ids::InstanceId;
use crate::terminal::TerminalSize;

/// The half that the command reads from.
#[derive(Debug)]
pub struct ExecInput(Sending);

/// The half that it prints to.
#[derive(Debug)]
pub struct ExecOutput(Receiving);

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
        let (input, output) = socket::open(self, call).await?;
        let mut input = ExecInput(input);
        input.0.message(&ExecMessage::Start(Box::new(start.clone()))).await?;
        Ok((input, ExecOutput(output)))
    }
}

impl ExecInput {
    /// Bytes for its standard input; waits until there is room for them.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn bytes(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.0.bytes(bytes).await
    }

    /// Its standard input ends here.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn end(&mut self) -> Result<(), ClientError> {
        self.0.message(&ExecMessage::StdinEnd).await
    }

    /// Its terminal is this large now.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), ClientError> {
        self.0.message(&ExecMessage::Resize(size)).await
    }
}

impl ExecOutput {
    /// Whether its VM is still being made.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.0.is_unfinished
    }

    /// What comes next. After [`ExecEvent::Exit`] nothing does.
    ///
    /// # Errors
    /// The server's refusal, when it does not take the command; [`ClientError::Interrupted`] when the connection is gone, and with
    /// it the command.
    pub async fn next(&mut self) -> Result<ExecEvent, ClientError> {
        loop {
            match self.0.next().await? {
                Received::Bytes(mut bytes) => match bytes.first().copied() {
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
                Received::Text(text) => match serde_json::from_str(&text) {
                    Ok(ExecMessage::Exit(exit)) => return Ok(ExecEvent::Exit(exit)),
                    Ok(ExecMessage::Error(detail)) => return Err(refusal(detail)),
                    _ => {}
                },
            }
        }
    }
}

/// A refusal that came as a message.
pub(super) fn refusal(detail: ErrorDetail) -> ClientError {
    let status = status_of(detail.code);
    let body = serde_json::to_vec(&ErrorBody { error: detail }).unwrap_or_default();
    error::from_reply(status, &body, None, None)
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
        ErrorCode::RangeNotSatisfiable => 416,
        ErrorCode::ValidationError => 422,
        ErrorCode::TooManyRequests => 429,
        ErrorCode::InternalError => 500,
        ErrorCode::BadGateway => 502,
        ErrorCode::Unavailable => 503,
        ErrorCode::InsufficientStorage => 507,
    }
}
