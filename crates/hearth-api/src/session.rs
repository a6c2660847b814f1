//! Exec sessions: commands that a VM's agent keeps, so that they outlive who started them; and the processes of a VM.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ErrorDetail;
use crate::exec::{ExecExit, ExecRequest};
use crate::terminal::TerminalSize;
use crate::time;
use crate::values::{SessionTag, SignalName};

/// Body of `POST /instances/{id}/sessions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "request": { "command": "npm run build", "cwd": "/home/app" }, "tag": "build" }))]
pub struct StartSession {
    /// The command. What its `stdin` holds is its first input.
    pub request: ExecRequest,
    /// A name that is unique among the running sessions of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tag: Option<SessionTag>,
    /// It runs in a terminal of this size; without one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub terminal: Option<TerminalSize>,
    /// Its standard input stays open for clients; else it ends after `request.stdin`. One in a terminal always takes input.
    #[serde(default)]
    #[schema(default = false)]
    pub open_stdin: bool,
    /// Clients cannot send it input.
    #[serde(default)]
    #[schema(default = false)]
    pub read_only: bool,
    /// The VM is released when its first process has ended, also after a restart of the server; it needs a `tag`. One session of a claim may
    /// do that, and a claimed VM alone has one.
    #[serde(default)]
    #[schema(default = false)]
    pub release_when_ended: bool,
}

/// Whether a session's process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SessionStatus {
    /// Its first process runs.
    Running,
    /// Its first process has ended.
    Ended,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Its id.
    pub id: String,
    /// The name it was given, or `null`.
    #[schema(required)]
    pub tag: Option<String>,
    /// The id of its first process in the VM.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The folder it was started in.
    pub cwd: String,
    /// The user it runs as.
    pub user: String,
    /// Whether its first process runs.
    pub status: SessionStatus,
    /// How its first process ended; `null` while it runs.
    #[schema(required)]
    pub exit: Option<ExecExit>,
    /// The size of its terminal; `null` when it has none.
    #[schema(required)]
    pub terminal: Option<TerminalSize>,
    /// Whether it takes input.
    pub stdin_open: bool,
    /// Its time limit; `null` when it has none.
    #[schema(required)]
    pub timeout_seconds: Option<u64>,
    /// When it was started.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When its first process ended; `null` while it runs.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// How many bytes it has printed.
    pub output_bytes: u64,
    /// How many of them, the oldest, are not kept any more.
    pub dropped_bytes: u64,
    /// Whether something can still print: its first process, or one that it left running.
    pub output_open: bool,
    /// How many clients read its output now.
    pub readers: u32,
}

impl Session {
    /// Whether its first process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status == SessionStatus::Running
    }
}

/// Reply of `DELETE /instances/{id}/sessions/{session}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionRemoved {
    /// The session.
    pub id: String,
    /// Always true.
    pub removed: bool,
}

/// Body of `POST /instances/{id}/sessions/{session}/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "signal": "TERM", "tree": true }))]
pub struct SendSignal {
    /// The signal's name, with or without `SIG`, or its number.
    pub signal: SignalName,
    /// To every process of the session, also those that left its first process; else to the first process alone.
    #[serde(default)]
    #[schema(default = false)]
    pub tree: bool,
}

/// Reply of `POST /instances/{id}/sessions/{session}/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignalSent {
    /// The session.
    pub id: String,
    /// How many processes got it.
    pub processes: u32,
}

/// How long a client reads a session's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReadUntil {
    /// What there is now.
    Now,
    /// Until its first process has ended.
    #[default]
    Ended,
    /// Until nothing can print any more: also not what it left running.
    Closed,
}

/// The first message of a session to a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionBegin {
    /// The session as it is now.
    pub session: Session,
    /// The position of the first byte that follows, counted from the first one ever printed. What is dropped counts, too: a client that
    /// adds up what it gets can ask for the rest with `from` after its connection was cut.
    pub position: u64,
}

/// Output that is not kept any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionDropped {
    /// How many bytes are missing here.
    pub bytes: u64,
}

/// A text message of `GET /instances/{id}/sessions/{session}/attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum SessionMessage {
    /// From the server, the first message.
    Begin(Box<SessionBegin>),
    /// From the client: the session's input ends here, for all clients.
    StdinEnd,
    /// From the client: the terminal is this large now.
    Resize(TerminalSize),
    /// From the server: output that this client was too late, or too slow, for.
    Dropped(SessionDropped),
    /// From the server: nothing follows. The session as it is now.
    End(Box<Session>),
    /// From the server: the VM, or its agent, can say no more. The last message.
    Error(ErrorDetail),
}

/// One process in a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The id of the process that started it, or adopted it.
    pub parent: u32,
    /// Its user.
    pub user: String,
    /// The kernel's letter: `R` runs, `S` sleeps, `D` waits for a disk, `T` is stopped, `Z` has ended and is not waited for.
    pub state: String,
    /// Memory that it holds, KiB.
    pub rss_kib: u64,
    /// Processor time that it has used.
    pub cpu_ms: u64,
    /// When it was started.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// Program and arguments.
    pub command: String,
    /// The session that it is of, or `null`.
    #[schema(required)]
    pub session: Option<String>,
}
