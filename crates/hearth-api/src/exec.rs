//! Commands inside a VM, over the public API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Body of `POST /instances/{id}/exec`. Exactly one of `command` and `argv`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExecRequest {
    /// Run by `bash -c`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Program and arguments, without a shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Working directory, `/home` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Variables beside the project's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Root by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The command and its children are ended after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Text for its standard input; empty by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
}

impl std::fmt::Debug for ExecRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecRequest")
            .field("cwd", &self.cwd)
            .finish_non_exhaustive()
    }
}

/// Reply with `Accept: application/json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecReply {
    /// `null` when a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal's name (`SIGKILL`), or `null`.
    pub signal: Option<String>,
    /// What it printed (bytes that are no UTF-8 replaced).
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
    /// How long it ran.
    pub duration_ms: u64,
    /// Output was longer than the server keeps; use the event stream.
    pub truncated: bool,
}

/// Data of the last event (`exit`) with `Accept: text/event-stream`; `stdout` and `stderr` events carry base64 text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecExit {
    /// `null` when a signal ended it or it never started.
    pub exit_code: Option<i32>,
    /// The signal's name, or `null`.
    pub signal: Option<String>,
    /// How long it ran.
    pub duration_ms: u64,
    /// Why there is neither code nor signal: the timeout passed, it could not be started, the VM was lost.
    pub error: Option<String>,
}
