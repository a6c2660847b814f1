//! The protocol between the host and the agent in a VM: HTTP/2 over one byte stream.
//!
//! It is additive: an agent in a warm VM is older than the server that talks to it. Unknown keys are ignored by both
//! sides; a new ability is a new path or a new optional key, and [`PROTOCOL_VERSION`] counts up.

#![warn(missing_docs)]

use serde::{Deserialize, Serialize};

#[cfg(feature = "client")]
pub mod client;
pub mod exec_session;
pub mod files;
pub mod frames;
pub mod ports;
pub mod requests;
pub mod session;
pub mod ssh;

/// Counts up with every addition that a peer may want to know of.
///
/// 1: health, exec, files, tree, clock. 2: activate. 3: [`Activated::agent_version`]. 4: settle. 5: terminal.
/// 6: the status of what timed out, the exit code of what could not start, when the agent was started; logs; who was killed for memory.
/// 7: RSA host keys. 8: hand-over. 9: files for people (`/v1/fs/…`). 10: exec sessions, processes. 11: TCP ports, SSH.
/// 12: guest requests.
pub const PROTOCOL_VERSION: u32 = 12;

/// Name of the virtio-serial port the agent listens on, as it appears under `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "org.hearth.agent.0";

/// Where the agent listens in a container, which has no such port.
pub const SOCKET_PATH: &str = "/run/hearth/agent.sock";

/// Reply of `GET /v1/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// The agent's own version.
    pub version: String,
    /// [`PROTOCOL_VERSION`] of the agent.
    pub protocol: u32,
    /// The kernel's boot id: changes when the VM booted anew.
    pub boot_id: String,
    /// Milliseconds since the VM booted.
    pub uptime_ms: u64,
    /// Milliseconds since this agent was started; absent before protocol 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_uptime_ms: Option<u64>,
}

/// What to run. Exactly one of `argv` and `shell`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecSpec {
    /// Program and arguments, run without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// A text run by `bash -eo pipefail -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Working directory; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Added to the agent's small default environment (PATH, HOME, USER, LANG… and the image's `/etc/environment`), and
    /// stronger than it.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// A file in the VM, by its absolute path, that is sourced by root's shell with every variable exported
    /// (`set -a; . FILE`); skipped when it does not exist. [`ExecSpec::env`] is stronger than its variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_file: Option<String>,
    /// A user name or `uid[:gid]`; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The whole tree of processes is ended after this many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The command continues when the caller is gone, its output goes to a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detach: Option<Detach>,
}

/// A command that runs in a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TerminalSpec {
    /// What runs in it; the terminal is all of its input and output. Never detached.
    pub command: ExecSpec,
    /// How large it is at first.
    pub size: TerminalSize,
}

/// What programs take a terminal for when its client does not say, as the value of `TERM`.
pub const DEFAULT_TERM: &str = "xterm-256color";

/// How large a terminal is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub cols: u16,
}

/// How a detached command is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Detach {
    /// Standard output and error are appended here; parent folders are made.
    pub log_path: String,
    /// The command has this long to crash; if it still runs then, the exec ends with [`ExecEnd::Detached`].
    pub grace_ms: u64,
}

/// The last frame of an exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum ExecEnd {
    /// The command ended by itself or by a signal from elsewhere.
    #[serde(rename_all = "camelCase")]
    Exited {
        /// Exit code; `None` when a signal ended it.
        code: Option<i32>,
        /// Signal number, when a signal ended it.
        signal: Option<i32>,
        /// How long it ran.
        duration_ms: u64,
        /// The log of what processes print that it left running and that hold its outputs open. Absent when there are none, and
        /// before protocol 6.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        log: Option<String>,
        /// Whom the kernel killed meanwhile because the VM had no memory left, for a person. Absent before protocol 6.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        out_of_memory: Option<String>,
    },
    /// The timeout passed; every process of the command has been killed.
    #[serde(rename_all = "camelCase")]
    TimedOut {
        /// How long it ran.
        duration_ms: u64,
        /// Exit code, where it ended by itself when it was asked to; absent before protocol 6.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        /// The signal that ended it; absent before protocol 6.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
    },
    /// A detached command is running and continues.
    #[serde(rename_all = "camelCase")]
    Detached {
        /// Its process id in the VM.
        pid: u32,
    },
    /// It could not be started at all.
    #[serde(rename_all = "camelCase")]
    NotStarted {
        /// Why, for a person.
        reason: String,
        /// The exit code that shells give for it: 127 for a program that is not there, 126 for what cannot be run as asked. Absent
        /// when the fault is not the command's, and before protocol 6.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
    },
}

/// The exit code for a program that was not found, as shells, `env` and `ssh` give it.
pub const EXIT_NOT_FOUND: i32 = 127;
/// The exit code for a command that is there and cannot be run as asked: not executable, no such user or folder.
pub const EXIT_NOT_RUN: i32 = 126;

/// Reply of `GET /v1/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogList {
    /// All logs there are.
    pub items: Vec<LogEntry>,
}

/// What a log is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// A background command of the set-up.
    Setup,
    /// Processes that a command left running.
    Exec,
}

/// One log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogEntry {
    /// What it is read by.
    pub name: String,
    /// What it is of.
    pub kind: LogKind,
    /// The command that left them running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// What is kept.
    pub bytes: u64,
    /// What had to go to make room.
    pub dropped_bytes: u64,
    /// Whether a process still holds the outputs; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<bool>,
    /// When something was last written, milliseconds since the Unix epoch; absent when nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_unix_ms: Option<i64>,
}

/// Body of `POST /v1/clock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetClock {
    /// The host's time, nanoseconds since the Unix epoch.
    pub unix_nanos: i64,
}

/// Body of `POST /v1/hand-over`: what a VM gets when a task takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandOver {
    /// The host's time, nanoseconds since the Unix epoch.
    pub unix_nanos: i64,
    /// Files of root's. Those that are there are overwritten in place, so a reader at the same moment may see half of one: this is for
    /// a VM in which nothing reads them yet. Under emulation the first new file of a fork takes 25 to 80 ms and its renaming
    /// 100 ms, overwriting one 1 ms (measured: ext4, software emulation).
    pub files: Vec<ShortFile>,
}

/// A small text file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShortFile {
    /// Where it is: an absolute path.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// What it holds.
    pub text: String,
}

/// Without the text, which may hold secrets.
impl std::fmt::Debug for ShortFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShortFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Longest text of all files of one [`HandOver`] together, bytes.
pub const SHORT_FILES: usize = 16 * 1024;

/// Body of `POST /v1/activate`: who a VM is that was forked, and so woke up as somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Activate {
    /// The host's time, nanoseconds since the Unix epoch.
    pub unix_nanos: i64,
    /// Random bytes of the host, base64; at least [`ENTROPY_BYTES`].
    pub entropy: String,
    /// The new host name: a DNS label.
    pub hostname: String,
    /// The new machine id, 32 small hexadecimal digits; a random one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Takes the place of the RSA key of the VM's SSH server, where it has one: making one takes an emulated guest many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rsa_host_key: Option<HostKey>,
}

/// A private key of an SSH server, in OpenSSH's own form. Shows nothing of itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostKey(pub String);

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostKey(…)")
    }
}

/// How many random bytes a VM must be given at least: a whole key of the kernel's random generator, twice.
pub const ENTROPY_BYTES: usize = 64;

/// Reply of `POST /v1/activate`: everything in the VM that tells it from others is its own now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Activated {
    /// The machine id it has now.
    pub machine_id: String,
    /// The boot id that programs see now.
    pub boot_id: String,
    /// File names of the SSH host keys that were made.
    #[serde(default)]
    pub host_keys: Vec<String>,
    /// Its SSH server had an RSA key, which was removed, and none was given: the host brings one ([`paths::RSA_HOST_KEY`]).
    #[serde(default)]
    pub lacks_rsa_host_key: bool,
    /// TCP connections to the outside that were left from before the freeze, and are closed now.
    #[serde(default)]
    pub closed_connections: u32,
    /// The agent's own version, as in [`Health::version`]; absent before protocol 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// How long it took in the VM.
    #[serde(default)]
    pub duration_ms: u64,
}

/// Body of every reply that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFault {
    /// What went wrong, for a person.
    pub message: String,
    /// The same for a program; only what [`paths::FS_FILE`] and its like answer has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<files::FaultCode>,
}

/// Paths and query keys of the agent's HTTP interface, in one place for both ends.
pub mod paths {
    /// `GET`: a [`Health`](super::Health).
    pub const HEALTH: &str = "/v1/health";
    /// `POST`: frames in, frames out, see [`FrameKind`](super::FrameKind).
    pub const EXEC: &str = "/v1/exec";
    /// `POST`: frames in, frames out, of a command in a terminal: starts with a [`TerminalSpec`](super::TerminalSpec).
    pub const TERMINAL: &str = "/v1/terminal";
    /// `PUT`: the body becomes the file [`PATH`], with [`MODE`] and [`OWNER`]. `GET`: the file's bytes.
    pub const FILES: &str = "/v1/files";
    /// `PUT`: the body, a tar stream, is extracted below [`PATH`].
    pub const TREE: &str = "/v1/tree";
    /// `POST`: a [`SetClock`](super::SetClock).
    pub const CLOCK: &str = "/v1/clock";
    /// `POST`: a [`HandOver`](super::HandOver).
    pub const HAND_OVER: &str = "/v1/hand-over";
    /// `POST`: an [`Activate`](super::Activate), answered by an [`Activated`](super::Activated). Before any other command.
    pub const ACTIVATE: &str = "/v1/activate";
    /// `POST`: a [`HostKey`](super::HostKey), as JSON, which becomes the RSA key of the VM's SSH server.
    pub const RSA_HOST_KEY: &str = "/v1/rsa-host-key";
    /// `POST`, without a body: the agent prepares for commands, as it does when it is idle, at once. Before the VM is frozen.
    pub const QUIESCE: &str = "/v1/settle";
    /// `GET`: a [`LogList`](super::LogList).
    pub const LOGS: &str = "/v1/logs";
    /// `GET`: the text of the log [`NAME`]; with [`FOLLOW`] `true` also what will be written, to the end.
    pub const LOG: &str = "/v1/log";
    /// How the paths of files for people begin.
    pub const FS: &str = "/v1/fs/";
    /// `GET`: the bytes of the file [`PATH`], or the part that [`OFFSET`] and [`LENGTH`], or [`LAST`], name; of the whole file when it is not
    /// the one of [`TAG`] any more. `PUT`: the body becomes the file, with [`MODE`] and [`OWNER`] where they are given, else with those that
    /// it has; answered by its [`Entry`](super::files::Entry). All of `/v1/fs` takes [`USER`], for whom it is done and who must be permitted
    /// to, and paths that begin with `~/`: in that user's home.
    pub const FS_FILE: &str = "/v1/fs/file";
    /// `GET`: the [`Entry`](super::files::Entry) at [`PATH`]. `DELETE`: removes it; a folder with what it holds only when [`RECURSIVE`].
    pub const FS_ENTRY: &str = "/v1/fs/entry";
    /// `GET`: an [`EntryList`](super::files::EntryList) of the folder [`PATH`], [`DEPTH`] levels, at most [`LIMIT`] entries.
    pub const FS_LIST: &str = "/v1/fs/list";
    /// `POST`: makes the folder [`PATH`], and what is missing above it.
    pub const FS_FOLDER: &str = "/v1/fs/folder";
    /// `POST`: renames [`PATH`] to [`TO`], over what is there only when [`REPLACE`].
    pub const FS_MOVE: &str = "/v1/fs/move";
    /// `GET`: the folder [`PATH`] as a tar stream. `PUT`: the body, a tar stream, is unpacked below [`PATH`], for [`OWNER`]; answered by an
    /// [`Unpacked`](super::files::Unpacked).
    pub const FS_TREE: &str = "/v1/fs/tree";
    /// `GET`: the changes at [`PATH`], below it when [`RECURSIVE`], as they happen: a [`Change`](super::files::Change) as JSON in each line.
    pub const FS_WATCH: &str = "/v1/fs/watch";
    /// `GET`: a [`SessionList`](super::exec_session::SessionList). `POST`: a [`SessionSpec`](super::exec_session::SessionSpec), answered by a
    /// [`SessionStart`](super::exec_session::SessionStart).
    pub const SESSIONS: &str = "/v1/sessions";
    /// How the paths of one session begin. They take [`SESSION`].
    pub const SESSION_PREFIX: &str = "/v1/session/";
    /// `GET`: a [`SessionInfo`](super::exec_session::SessionInfo). `DELETE`: removes one that has ended.
    pub const SESSION_INFO: &str = "/v1/session/info";
    /// `POST`: frames in, frames out. The first is a `Spec` with a [`SessionAttach`](super::exec_session::SessionAttach).
    pub const SESSION_ATTACH: &str = "/v1/session/attach";
    /// `POST`: the body goes to the session's standard input, which ends after it when [`CLOSE`].
    pub const SESSION_STDIN: &str = "/v1/session/stdin";
    /// `POST`: a [`TerminalSize`](super::TerminalSize).
    pub const SESSION_RESIZE: &str = "/v1/session/resize";
    /// `POST`: a [`SessionSignal`](super::exec_session::SessionSignal), answered by a [`Signalled`](super::exec_session::Signalled).
    pub const SESSION_SIGNAL: &str = "/v1/session/signal";
    /// `GET`: waits until the session has ended, or for [`LIMIT`] milliseconds; answered as [`SESSION_INFO`].
    pub const SESSION_WAIT: &str = "/v1/session/wait";
    /// `GET`: a [`ProcessList`](super::exec_session::ProcessList).
    pub const PROCESSES: &str = "/v1/processes";
    /// Query key: a session's id, process id or tag.
    pub const SESSION: &str = "session";
    /// Query key: `true`, or not.
    pub const CLOSE: &str = "close";
    /// `GET`: a [`PortList`](super::ports::PortList).
    pub const PORTS: &str = "/v1/ports";
    /// `POST`: a connection to the TCP port [`PORT`] of the VM; the bodies are its two directions, each with its own end. 502: nothing
    /// listens there, 504: what listens did not take the connection in time.
    pub const PORT_STREAM: &str = "/v1/ports/stream";
    /// Query key: a number of a TCP port.
    pub const PORT: &str = "port";
    /// `POST`: [`SshKeys`](super::ssh::SshKeys), whose owners may enter from now on; answered by an [`SshHost`](super::ssh::SshHost).
    pub const SSH_KEYS: &str = "/v1/ssh/keys";
    /// `POST`: an SSH connection: the bodies are its two directions. Sessions have the variables of the file [`PATH`] where it is given. 501: the VM has
    /// no SSH server.
    pub const SSH: &str = "/v1/ssh";
    /// `GET`: what programs in the VM ask, a [`GuestRequest`](super::requests::GuestRequest) as JSON in each line, as it is asked; one host
    /// reads at a time. `POST`: a [`HostReply`](super::requests::HostReply).
    pub const GUEST_REQUESTS: &str = "/v1/guest-requests";
    /// Query key: as whom; as [`OWNER`].
    pub const USER: &str = "user";
    /// Query key: the first byte.
    pub const OFFSET: &str = "offset";
    /// Query key: how many bytes at most.
    pub const LENGTH: &str = "length";
    /// Query key: how many bytes at the end.
    pub const LAST: &str = "last";
    /// Query key: the file that a part is of, see [`FileHead::tag`](super::files::FileHead::tag).
    pub const TAG: &str = "tag";
    /// Query key: how many levels of folders.
    pub const DEPTH: &str = "depth";
    /// Query key: how many entries at most.
    pub const LIMIT: &str = "limit";
    /// Query key: `true`, or not.
    pub const RECURSIVE: &str = "recursive";
    /// Query key: the new path.
    pub const TO: &str = "to";
    /// Query key: `true`, or not.
    pub const REPLACE: &str = "replace";
    /// Query key: the name of a log.
    pub const NAME: &str = "name";
    /// Query key: `true`, or not.
    pub const FOLLOW: &str = "follow";
    /// Query key: an absolute path in the VM.
    pub const PATH: &str = "path";
    /// Query key: permission bits, octal; `0644` when absent.
    pub const MODE: &str = "mode";
    /// Query key: a user name or `uid[:gid]`; root when absent.
    pub const OWNER: &str = "owner";
}

/// Kinds of the frames inside an exec's request and reply bodies: one byte of kind, four bytes of length (big endian), payload.
/// The request starts with `Spec` (an [`ExecSpec`] as JSON), then any number of `Stdin`, and `StdinEnd` or the end of the body.
/// The reply holds `Stdout` and `Stderr` in the order in which they were read and ends with one `End` (an [`ExecEnd`] as JSON).
/// Of a terminal, `Spec` is a [`TerminalSpec`], `Resize` may come among `Stdin`, and everything it shows is `Stdout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// An [`ExecSpec`] as JSON.
    Spec = 1,
    /// Bytes for the command's standard input.
    Stdin = 2,
    /// Standard input is closed.
    StdinEnd = 3,
    /// Bytes the command wrote to standard output.
    Stdout = 4,
    /// Bytes the command wrote to standard error.
    Stderr = 5,
    /// An [`ExecEnd`] as JSON; nothing follows.
    End = 6,
    /// A [`TerminalSize`] as JSON.
    Resize = 7,
    /// A [`SessionInfo`](exec_session::SessionInfo) as JSON: the first and the last frame of what a session has printed.
    Session = 8,
    /// A [`Dropped`](exec_session::Dropped) as JSON, in the place of output that is not kept any more.
    Dropped = 9,
}

impl FrameKind {
    /// Its name in errors.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spec => "spec",
            Self::Stdin => "stdin",
            Self::StdinEnd => "stdin end",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::End => "end",
            Self::Resize => "resize",
            Self::Session => "session",
            Self::Dropped => "dropped",
        }
    }
}
