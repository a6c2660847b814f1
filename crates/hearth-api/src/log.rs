//! Logs inside a VM: of background set-up commands, and of what commands left running.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time;

/// What a log is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// A background command of the set-up.
    Setup,
    /// Processes that a command left running.
    Exec,
}

/// One log of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceLog {
    /// What it is read by: the name of the background command, or `exec-N`.
    pub name: String,
    /// `setup`: a background command of the set-up. `exec`: processes that a command left running.
    pub kind: LogKind,
    /// The command that left them running; `null` where that is not known.
    #[schema(required)]
    pub command: Option<String>,
    /// How much of it is kept.
    pub bytes: u64,
    /// How many bytes were dropped from its beginning to make room. Only logs of commands are bounded.
    pub dropped_bytes: u64,
    /// Whether a process still holds the outputs; `null` where that is not known.
    #[schema(required)]
    pub open: Option<bool>,
    /// When something was last written; `null` when nothing was.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Timestamp>,
}
