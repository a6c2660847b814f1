//! Terminals in a VM: what goes over their WebSocket. Binary messages are the terminal's bytes, both ways; text messages are a
//! [`TerminalMessage`] as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::exec::ExecExit;

/// How large a terminal is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "rows": 40, "cols": 132 }))]
pub struct TerminalSize {
    /// Lines.
    #[serde(deserialize_with = "crate::patch::required_whole")]
    #[schema(minimum = 1, maximum = 1000)]
    pub rows: u16,
    /// Characters of a line.
    #[serde(deserialize_with = "crate::patch::required_whole")]
    #[schema(minimum = 1, maximum = 1000)]
    pub cols: u16,
}

impl TerminalSize {
    /// Most lines, and most characters of a line.
    pub const MOST: u16 = 1000;

    /// Whether it is a size that a terminal can have here.
    #[must_use]
    pub fn is_possible(self) -> bool {
        let possible = 1..=Self::MOST;
        possible.contains(&self.rows) && possible.contains(&self.cols)
    }
}

impl Default for TerminalSize {
    /// What terminals have always had.
    fn default() -> Self {
        Self { rows: 24, cols: 80 }
    }
}

/// A text message: `{"resize": {"rows": 50, "cols": 120}}`, `{"exit": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum TerminalMessage {
    /// From the client: the terminal is this large now.
    Resize(TerminalSize),
    /// From the server: how the command ended. The last message.
    Exit(ExecExit),
}
