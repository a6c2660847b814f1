//! What a person reads when a command did not work, and the exit code a script reads. One primary line, details, a hint.

use std::fmt;
use std::io;

use hearth_api::client::ClientError;

/// It did not work: the server said no, a boot failed, a check found a fault.
pub(crate) const EXIT_FAILED: u8 = 1;
/// The arguments make no sense (clap uses the same).
pub(crate) const EXIT_USAGE: u8 = 2;
/// No server was found, or it does not answer.
pub(crate) const EXIT_NO_SERVER: u8 = 3;
/// The token is missing, unknown or may not do this.
pub(crate) const EXIT_REFUSED: u8 = 4;
/// Nothing ready, or the server is busy: the same command may work later.
pub(crate) const EXIT_LATER: u8 = 5;
/// `exec`: the command's own time passed (the code `timeout` uses).
pub(crate) const EXIT_TIMED_OUT: u8 = 124;
/// `exec`: Hearth failed, not the command (the code `env`, `timeout` and container tools use).
pub(crate) const EXIT_EXEC_FAILED: u8 = 125;
/// Ended by a signal: this plus the signal's number.
pub(crate) const EXIT_SIGNAL_BASE: u8 = 128;

/// A command that did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    message: String,
    details: Vec<String>,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            details: Vec::new(),
            hint: None,
            code: EXIT_FAILED,
        }
    }

    /// Arguments that make no sense together or in themselves.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(message).with_code(EXIT_USAGE)
    }

    /// Ends with this code and says nothing: everything has been said, or nobody listens.
    pub(crate) fn silent(code: u8) -> Self {
        Self::new(String::new()).with_code(code)
    }

    /// Says which of several things it is about.
    pub(crate) fn about(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub(crate) fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = Some(text.into());
        self
    }

    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            return Ok(());
        }
        writeln!(f, "error: {}", self.message)?;
        for line in &self.details {
            writeln!(f, "  {line}")?;
        }
        if let Some(hint) = &self.hint {
            writeln!(f, "hint: {hint}")?;
        }
        Ok(())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let failure = Self::new(error.to_string());
        match error {
            ClientError::Setup { .. } => failure.with_code(EXIT_USAGE),
            ClientError::Unreachable { .. } => failure
                .with_code(EXIT_NO_SERVER)
                .hint("start a server with `hearth serve`, or name another one with --url or HEARTH_URL"),
            ClientError::Interrupted { .. } | ClientError::Timeout { .. } => failure
                .with_code(EXIT_NO_SERVER)
                .hint("the request may have been carried out: look before you send it again"),
            ClientError::Decode { request_id, .. } => failure.detail_if("request id", request_id),
            ClientError::Api {
                status,
                details,
                request_id,
                retry_after,
                ..
            } => {
                let mut failure = failure;
                for field in details {
                    let line = format!("{}: {}", field.path, field.message);
                    // A single field's fault may stand in the message already.
                    if !failure.message.contains(&line) {
                        failure = failure.detail(line);
                    }
                }
                // The id helps only where somebody has to look into the server's log.
                if status >= 500 {
                    failure = failure.detail_if("request id", request_id);
                }
                match status {
                    401 => failure.with_code(EXIT_REFUSED).hint(
                        "give a valid token in HEARTH_TOKEN; the first one of a server is in the file admin-token of its data folder",
                    ),
                    403 => failure.with_code(EXIT_REFUSED),
                    429 | 503 => {
                        let when = retry_after.map_or(String::new(), |pause| format!(" in {} s", pause.as_secs()));
                        failure.with_code(EXIT_LATER).hint(format!("try again{when}"))
                    }
                    500 => failure.hint("the server's log says more, under this request id"),
                    _ => failure,
                }
            }
        }
    }
}

impl Failure {
    fn detail_if(self, name: &str, value: Option<String>) -> Self {
        match value {
            Some(value) => self.detail(format!("{name}: {value}")),
            None => self,
        }
    }
}

/// Writing to standard output failed. A reader that went away (`| head`) is no fault to talk about.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(EXIT_SIGNAL_BASE + nix::libc::SIGPIPE as u8);
        }
        Self::new(format!("the output cannot be written: {error}"))
    }
}
