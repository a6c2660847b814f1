//! Why a command did not start: a sentence for a person, and the exit code that shells give for it.

use hearth_guest::{EXIT_NOT_FOUND, EXIT_NOT_RUN, ExecEnd};
use serde::{Deserialize, Serialize};

/// What a launcher says on its pipe, and what the caller gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NotStarted {
    pub(super) reason: String,
    /// None when the fault is ours.
    pub(super) code: Option<i32>,
}

impl NotStarted {
    /// The agent or the system could not, whatever the command was.
    pub(super) fn ours(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            code: None,
        }
    }

    /// There is no such program.
    pub(super) fn not_found(reason: impl Into<String>) -> Self {
        Self {
            code: Some(EXIT_NOT_FOUND),
            ..Self::ours(reason)
        }
    }

    /// The command cannot be run as it was asked for.
    pub(super) fn not_run(reason: impl Into<String>) -> Self {
        Self {
            code: Some(EXIT_NOT_RUN),
            ..Self::ours(reason)
        }
    }
}

impl From<NotStarted> for ExecEnd {
    fn from(NotStarted { reason, code }: NotStarted) -> Self {
        Self::NotStarted { reason, code }
    }
}
