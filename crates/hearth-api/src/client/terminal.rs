//! Terminals: a WebSocket in two halves, so that what is typed never waits for what is shown.

use bytes::Bytes;

use super::Client;
use super::error::ClientError;
use super::socket::{self, Received, Receiving, Sending};
use crate::exec::ExecExit;
use crate::ids::InstanceId;
use crate::terminal::{TerminalMessage, TerminalSize};

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
pub struct Typing(Sending);

/// The half that shows.
#[derive(Debug)]
pub struct Screen(Receiving);

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
        let (typing, screen) = socket::open(self, call).await?;
        Ok((Typing(typing), Screen(screen)))
    }
}

impl Typing {
    /// Types.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn bytes(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.0.bytes(bytes).await
    }

    /// Makes the terminal larger or smaller.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), ClientError> {
        self.0.message(&TerminalMessage::Resize(size)).await
    }
}

impl Screen {
    /// Whether its VM is still being made.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.0.is_unfinished
    }

    /// What comes next. After [`Shown::Exit`] nothing does.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`]: the connection is gone, and so is everything that ran in the terminal.
    pub async fn next(&mut self) -> Result<Shown, ClientError> {
        loop {
            match self.0.next().await? {
                Received::Bytes(bytes) => return Ok(Shown::Bytes(bytes)),
                Received::Text(text) => {
                    // A newer server may say more.
                    if let Ok(TerminalMessage::Exit(exit)) = serde_json::from_str(&text) {
                        return Ok(Shown::Exit(exit));
                    }
                }
            }
        }
    }
}
