//! Commands inside a VM, over the public API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text::{CommandText, GuestPath, Name, VariableName, VariableValue, Word};

/// Body of `POST /instances/{id}/exec`. Exactly one of `command` and `argv`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schema(example = json!({ "command": "cat README.md", "cwd": "/home/app", "timeoutSeconds": 60 }))]
pub struct ExecRequest {
    /// Run by `bash -c`.
    #[serde(deserialize_with = "crate::patch::present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = CommandText)]
    pub command: Option<String>,
    /// Program and arguments, without a shell.
    #[serde(deserialize_with = "crate::patch::present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Word>, min_items = 1)]
    pub argv: Option<Vec<String>>,
    /// Working directory, `/home` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<GuestPath>)]
    pub cwd: Option<String>,
    /// Variables beside the project's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<VariableName, VariableValue>>)]
    pub env: Option<BTreeMap<String, String>>,
    /// Root by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Name>)]
    pub user: Option<String>,
    /// The command and its children are ended after this time.
    #[serde(
        deserialize_with = "crate::patch::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 1, maximum = 86_400)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecReply {
    /// `null` when a signal ended it.
    #[schema(required)]
    pub exit_code: Option<i32>,
    /// The signal's name (`SIGKILL`), or `null`.
    #[schema(required)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecExit {
    /// `null` when a signal ended it or it never started.
    #[schema(required)]
    pub exit_code: Option<i32>,
    /// The signal's name, or `null`.
    #[schema(required)]
    pub signal: Option<String>,
    /// How long it ran.
    pub duration_ms: u64,
    /// Why there is neither code nor signal: the timeout passed, it could not be started, the VM was lost.
    #[schema(required)]
    pub error: Option<String>,
}
