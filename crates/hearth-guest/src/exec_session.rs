//! Exec sessions: processes that the agent keeps. They outlive the connection of the host that started them and are found by id,
//! process id or tag. Not the session of the transport, which is in [`session`](crate::session).

use serde::{Deserialize, Serialize};

use crate::{ExecEnd, ExecSpec, TerminalSize};

/// Body of `POST /v1/sessions`: what to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionSpec {
    /// The command. Its `detach` means nothing here.
    pub command: ExecSpec,
    /// A name that is unique among the sessions whose process runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// It runs in a terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// Its standard input is a pipe that stays open; without it, and without a terminal, the input is empty.
    #[serde(default)]
    pub stdin: bool,
    /// Refuses input from clients, also of a terminal.
    #[serde(default)]
    pub read_only: bool,
}

/// Reply of `POST /v1/sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum SessionStart {
    /// It runs.
    Started(Box<SessionInfo>),
    /// It could not be started, and there is no session.
    #[serde(rename_all = "camelCase")]
    NotStarted {
        /// Why, for a person.
        reason: String,
        /// The exit code that shells give for it; absent when the fault is not the command's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
    },
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    /// Its id: `s-` and hexadecimal digits.
    pub id: String,
    /// The name it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Its first process.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The folder it was started in.
    pub cwd: String,
    /// The user it runs as.
    pub user: String,
    /// How large its terminal is, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// Whether it takes input.
    #[serde(default)]
    pub stdin_open: bool,
    /// Milliseconds since the Unix epoch.
    pub started_unix_ms: i64,
    /// Its limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How its first process ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<ExecEnd>,
    /// Milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_unix_ms: Option<i64>,
    /// Bytes that it has printed.
    pub output_bytes: u64,
    /// The first of them that are not kept any more.
    pub dropped_bytes: u64,
    /// Whether a process can still print: the first one, or one that it left running.
    pub output_open: bool,
    /// How many clients read its output now.
    #[serde(default)]
    pub readers: u32,
}

impl SessionInfo {
    /// Whether its first process runs.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.end.is_none()
    }
}

/// Reply of `GET /v1/sessions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// The oldest first.
    pub items: Vec<SessionInfo>,
}

/// First frame of `POST /v1/session/attach`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAttach {
    /// Its id, process id or tag.
    pub session: String,
    /// The first byte of its output that is sent, counted from the first one ever printed; what is not kept any more is said by a
    /// [`FrameKind::Dropped`](crate::FrameKind::Dropped).
    #[serde(default)]
    pub from: u64,
    /// At most so many of the bytes that were printed before now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// How long output is sent.
    #[serde(default)]
    pub until: Until,
    /// The process waits for this reader, when it prints faster, instead of going without it.
    #[serde(default)]
    pub lossless: bool,
}

/// How long a reader wants output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Until {
    /// What there is now.
    Now,
    /// Until the first process has ended and what it printed is read.
    #[default]
    Ended,
    /// Until no process can print any more.
    Closed,
}

/// Payload of a [`FrameKind::Dropped`](crate::FrameKind::Dropped).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// So many bytes that followed what was sent before are not kept any more.
    pub bytes: u64,
}

/// Body of `POST /v1/session/signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSignal {
    /// Its number.
    pub signal: i32,
    /// To every process of the session, not to the first one alone.
    #[serde(default)]
    pub tree: bool,
}

/// Reply of `POST /v1/session/signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signalled {
    /// How many processes it was sent to.
    pub processes: u32,
}

/// Reply of `GET /v1/processes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessList {
    /// By process id; without threads of the kernel.
    pub items: Vec<ProcessInfo>,
}

/// One process in the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessInfo {
    /// Its id.
    pub pid: u32,
    /// Who started it, or adopted it.
    pub parent: u32,
    /// Its user's name, or number.
    pub user: String,
    /// The kernel's letter: `R` runs, `S` sleeps, `D` waits for a disk, `T` is stopped, `Z` has ended.
    pub state: String,
    /// Memory that it holds.
    pub rss_kib: u64,
    /// Processor time that it has used.
    pub cpu_ms: u64,
    /// Milliseconds since the Unix epoch.
    pub started_unix_ms: i64,
    /// Program and arguments; the short name where there are none.
    pub command: String,
    /// The session that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Longest tag, characters.
pub const LONGEST_TAG: usize = 100;

/// Why a text cannot be a tag; `None` when it can. A tag is never taken for an id or a process id.
#[must_use]
pub fn tag_fault(tag: &str) -> Option<&'static str> {
    let count = tag.chars().count();
    if count == 0 || count > LONGEST_TAG {
        Some("a tag has 1 to 100 characters")
    } else if tag.chars().any(char::is_control) {
        Some("a tag holds no control characters")
    } else if tag.bytes().all(|byte| byte.is_ascii_digit()) {
        Some("a tag of digits alone would be taken for a process id")
    } else if tag.starts_with("s-") {
        Some("a tag that starts with \"s-\" would be taken for a session's id")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_no_id_and_no_process_id() {
        for good in ["build", "Dev server", "8080/tcp", "grün"] {
            assert_eq!(tag_fault(good), None, "{good}");
        }
        for bad in ["", "1234", "s-12ab", "a\nb", &"x".repeat(101)] {
            assert!(tag_fault(bad).is_some(), "{bad}");
        }
    }
}
