//! Commands inside a VM, over the public API.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};

use crate::error::ErrorDetail;
use crate::terminal::TerminalSize;
use crate::values::{CommandText, GuestPath, Name, VariableName, VariableValue, Word};

/// Body of `POST /instances/{id}/exec`. Exactly one of `command` and `argv`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "command": "cat README.md", "cwd": "/home/app", "timeoutSeconds": 60 }))]
pub struct ExecRequest {
    /// Run by `bash -c`.
    #[serde(
        default,
        deserialize_with = "crate::patch::present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = CommandText)]
    pub command: Option<CommandText>,
    /// Program and arguments, without a shell.
    #[serde(
        default,
        deserialize_with = "crate::patch::present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(schema_with = program_and_arguments)]
    pub argv: Option<Vec<Word>>,
    /// Working directory, `/home` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<GuestPath>,
    /// Variables beside the project's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<VariableName, VariableValue>>,
    /// Root by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Name>,
    /// The command and its children are ended after this time.
    #[serde(
        default,
        deserialize_with = "crate::patch::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 1, maximum = 86_400)]
    pub timeout_seconds: Option<u64>,
    /// Text for its standard input; empty by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
}

impl ExecRequest {
    /// The fields of which a body has exactly one.
    pub const ALTERNATIVES: [&str; 2] = ["command", "argv"];
}

/// At least one word, and the first is not empty.
fn program_and_arguments() -> RefOr<Schema> {
    let program = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    ArrayBuilder::new()
        .description(Some("Program and arguments, without a shell."))
        .items(Ref::from_schema_name(Word::name()))
        .prefix_items([program.build()])
        .min_items(Some(1))
        .into()
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
    /// `null` when a signal ended it, or when its end is not known. 127: the program was not found. 126: it cannot be run as
    /// asked (not executable, no such user or folder).
    #[schema(required)]
    pub exit_code: Option<i32>,
    /// The signal's name (`SIGKILL`), or `null`.
    #[schema(required)]
    pub signal: Option<String>,
    /// What it printed. Where that is no UTF-8, bytes are replaced here and `stdoutBase64` has them.
    pub stdout: String,
    /// What it printed to standard error; see `stderrBase64`.
    pub stderr: String,
    /// The exact bytes of `stdout`, when they are no UTF-8; `null` when `stdout` is exact.
    #[serde(default)]
    #[schema(required)]
    pub stdout_base64: Option<String>,
    /// The exact bytes of `stderr`, when they are no UTF-8; `null` when `stderr` is exact.
    #[serde(default)]
    #[schema(required)]
    pub stderr_base64: Option<String>,
    /// How long it ran.
    pub duration_ms: u64,
    /// Output was longer than the server keeps; use the event stream.
    pub truncated: bool,
    /// It was ended because `timeoutSeconds` had passed.
    #[serde(default)]
    #[schema(required)]
    pub timed_out: bool,
    /// The VM had no memory left, and the kernel killed a process while the command ran; `error` says which.
    #[serde(default)]
    #[schema(required)]
    pub oom_killed: bool,
    /// It left processes running that hold its outputs open: what they print goes to this log of the instance. `null` when it
    /// left none.
    #[serde(default)]
    #[schema(required)]
    pub log: Option<String>,
    /// A message when it did not end normally: it could not be started, its time passed, its end is not known.
    #[serde(default)]
    #[schema(required)]
    pub error: Option<String>,
}

impl ExecReply {
    /// From what was printed and how it ended.
    #[must_use]
    pub fn new(exit: ExecExit, stdout: Vec<u8>, stderr: Vec<u8>, truncated: bool) -> Self {
        let (stdout, stdout_base64) = as_text(stdout, truncated);
        let (stderr, stderr_base64) = as_text(stderr, truncated);
        Self {
            exit_code: exit.exit_code,
            signal: exit.signal,
            stdout,
            stderr,
            stdout_base64,
            stderr_base64,
            duration_ms: exit.duration_ms,
            truncated,
            timed_out: exit.timed_out,
            log: exit.log,
            oom_killed: exit.oom_killed,
            error: exit.error,
        }
    }

    /// How it ended.
    #[must_use]
    pub fn exit(&self) -> ExecExit {
        ExecExit {
            exit_code: self.exit_code,
            signal: self.signal.clone(),
            duration_ms: self.duration_ms,
            error: self.error.clone(),
            timed_out: self.timed_out,
            log: self.log.clone(),
            oom_killed: self.oom_killed,
        }
    }
}

/// A text for a person, and the bytes themselves where the text is not exact. What was cut off in the middle of a character loses
/// that character only.
fn as_text(mut bytes: Vec<u8>, cut: bool) -> (String, Option<String>) {
    if let Err(error) = std::str::from_utf8(&bytes)
        && cut
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
    match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let exact = STANDARD.encode(error.as_bytes());
            (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(exact))
        }
    }
}

/// Data of the last event (`exit`) with `Accept: text/event-stream`; `stdout` and `stderr` events carry base64 text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecExit {
    /// `null` when a signal ended it, or when its end is not known. 127: the program was not found. 126: it cannot be run as
    /// asked (not executable, no such user or folder).
    #[schema(required)]
    pub exit_code: Option<i32>,
    /// The signal's name, or `null`.
    #[schema(required)]
    pub signal: Option<String>,
    /// How long it ran.
    pub duration_ms: u64,
    /// A message when it did not end normally: it could not be started, its time passed, its end is not known.
    #[schema(required)]
    pub error: Option<String>,
    /// It was ended because `timeoutSeconds` had passed.
    #[serde(default)]
    #[schema(required)]
    pub timed_out: bool,
    /// The VM had no memory left, and the kernel killed a process while the command ran; `error` says which.
    #[serde(default)]
    #[schema(required)]
    pub oom_killed: bool,
    /// It left processes running that hold its outputs open: what they print goes to this log of the instance. `null` when it
    /// left none.
    #[serde(default)]
    #[schema(required)]
    pub log: Option<String>,
}

/// A header of the reply to a command or a terminal in a VM that is still being made; of no other. Its value is `true`.
pub const UNFINISHED_HEADER: &str = "hearth-unfinished";

/// First byte of a binary message that is standard output.
pub const CHANNEL_STDOUT: u8 = 1;
/// First byte of a binary message that is standard error.
pub const CHANNEL_STDERR: u8 = 2;

/// What to run over a WebSocket, where the input is streamed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecStart {
    /// The command. What `stdin` holds comes before what is streamed.
    pub request: ExecRequest,
    /// It runs in a terminal of this size; without one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// A text message of `GET /instances/{id}/exec`: `{"start": {…}}`, `"stdinEnd"`, `{"exit": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ExecMessage {
    /// From the client, the first message: what to run.
    Start(Box<ExecStart>),
    /// From the client: its standard input ends here.
    StdinEnd,
    /// From the client: its terminal is this large now.
    Resize(TerminalSize),
    /// From the server: how the command ended. The last message.
    Exit(ExecExit),
    /// From the server: the command is not taken. The last message.
    Error(ErrorDetail),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(stdout: &[u8], truncated: bool) -> (String, Option<String>) {
        let reply = ExecReply::new(ExecExit::default(), stdout.to_vec(), Vec::new(), truncated);
        assert_eq!((reply.stderr.as_str(), reply.stderr_base64), ("", None));
        (reply.stdout, reply.stdout_base64)
    }

    #[test]
    fn bytes_that_are_no_text_come_twice_and_are_never_lost() {
        assert_eq!(printed("grüße".as_bytes(), false), ("grüße".to_owned(), None));
        assert_eq!(
            printed(b"a\xffb", false),
            ("a\u{fffd}b".to_owned(), Some("Yf9i".to_owned()))
        );
        // A whole character less where the output was cut, and nothing replaced.
        assert_eq!(printed(&"grü".as_bytes()[..3], true), ("gr".to_owned(), None));
        assert_eq!(
            printed(&"grü".as_bytes()[..3], false),
            ("gr\u{fffd}".to_owned(), Some("Z3LD".to_owned()))
        );
    }
}
