//! What a person reads when a command did not work, and the exit code a script reads. One primary line, details, a hint.

use std::fmt;
use std::io;

use hearth_api::client::ClientError;

use crate::{hint, output, words};

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
    /// Boxed, so that what every command may return stays small.
    answer: Box<Answer>,
}

/// What of a server's refusal a program may want to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Answer {
    /// The API's word for it.
    code: Option<String>,
    request_id: Option<String>,
}

/// A failure for programs: the shape of the API's errors, with what only this program knows.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    code: &'a str,
    message: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    exit_code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            details: Vec::new(),
            hint: None,
            code: EXIT_FAILED,
            answer: Box::default(),
        }
    }

    /// Arguments that make no sense together or in themselves.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(message).with_code(EXIT_USAGE)
    }

    /// Ends with this code and says nothing: everything has been said, or no one reads it.
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

    /// What happened and what to do, for a table.
    /// Everything that is wrong, for a log.
    pub(crate) fn in_one_line(&self) -> String {
        let all = std::iter::once(&self.message).chain(&self.details);
        all.map(String::as_str).collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn into_parts(self) -> (String, Option<String>) {
        (self.message, self.hint)
    }

    /// One line for programs; nothing when everything has been said.
    pub(crate) fn as_json(&self) -> String {
        if self.message.is_empty() {
            return String::new();
        }
        let code = self.answer.code.as_deref().unwrap_or(match self.code {
            EXIT_USAGE => "usage",
            EXIT_NO_SERVER => "no_server",
            EXIT_REFUSED => "refused",
            EXIT_LATER => "try_later",
            EXIT_TIMED_OUT => "timed_out",
            _ => "failed",
        });
        let report = Report {
            code,
            message: hint::complete(&self.message),
            details: self.details.iter().map(|line| hint::complete(line)).collect(),
            hint: self.hint.as_deref().map(hint::complete),
            request_id: self.answer.request_id.as_deref(),
            exit_code: self.code,
        };
        format!("{}\n", serde_json::json!({ "error": report }))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            return Ok(());
        }
        writeln!(f, "error: {}", hint::complete(&self.message))?;
        for line in &self.details {
            writeln!(f, "  {}", hint::complete(line))?;
        }
        if let Some(text) = &self.hint {
            writeln!(f, "hint: {}", hint::complete(text))?;
        }
        Ok(())
    }
}

/// Arguments that could not be understood.
impl From<clap::Error> for Failure {
    fn from(refusal: clap::Error) -> Self {
        use clap::error::ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, MissingSubcommand};
        // Else the message would be the whole help.
        if matches!(
            refusal.kind(),
            DisplayHelpOnMissingArgumentOrSubcommand | MissingSubcommand
        ) {
            return Self::usage("no command is given")
                .hint("`hearth --help` lists the commands, `hearth COMMAND --help` explains one");
        }
        let text = refusal.render().to_string();
        let (message, more) = text.trim_end().split_once('\n').unwrap_or((text.trim_end(), ""));
        let mut failure = Self::usage(message.trim_start_matches("error: "));
        for line in more.lines().map(str::trim).filter(|line| !line.is_empty()) {
            failure = failure.detail(line);
        }
        failure
    }
}

/// What to do when no server answers at an address, by the error of the attempt.
fn advice_for_connecting(url: &str, reason: &str) -> &'static str {
    // rustls got something that is no TLS: a server that speaks plain HTTP, as Hearth's own does.
    let no_tls = ["InvalidContentType", "corrupt message"];
    if url.starts_with("https://") && no_tls.iter().any(|words| reason.contains(words)) {
        return "that server speaks plain HTTP, not HTTPS: write http:// instead of https://, or start it with --tls-cert";
    }
    // A certificate that `openssl req -x509` makes without more words is an authority's, and serves nobody.
    if url.starts_with("https://") && reason.contains("CaUsedAsEndEntity") {
        return "the server shows the certificate of an authority, which is none for a server: sign one for it with that authority, or make one with \
                `openssl req -x509 … -addext basicConstraints=critical,CA:FALSE` and name it with --ca";
    }
    if url.starts_with("https://") && reason.contains("certificate") {
        return "the server's certificate is not trusted here: name the file of its authority with --ca or HEARTH_CA, and use a name that the certificate \
                holds";
    }
    "start a server with `hearth serve`, or name another one with --url or HEARTH_URL"
}

/// Which token would do, where a scope is lacking.
fn advice_for_scope(message: &str) -> Option<String> {
    let scope = message.split("lacks the scope `").nth(1)?.split('`').next()?;
    let kinds = match scope {
        "claim" => "agent (or ci)",
        "project:read" => "viewer (or ci, which may also change projects and claim)",
        "project:write" => "ci",
        _ => "admin",
    };
    Some(format!(
        "an admin makes a token that has it with `hearth token create NAME --for {}`: the use is {kinds}",
        kinds.split(' ').next().unwrap_or_default()
    ))
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let mut failure = Self::new(error.to_string());
        if let ClientError::Api { request_id, .. } | ClientError::Decode { request_id, .. } = &error {
            failure.answer.request_id.clone_from(request_id);
        }
        let code = error.code().and_then(|code| serde_json::to_value(code).ok());
        failure.answer.code = code.and_then(|code| code.as_str().map(str::to_owned));
        match error {
            ClientError::Setup { .. } => failure.with_code(EXIT_USAGE),
            ClientError::Unreachable { url, reason } => failure
                .with_code(EXIT_NO_SERVER)
                .hint(advice_for_connecting(&url, &reason)),
            // A server with TLS ends a request in the clear at once, or answers it with bytes of its own.
            ClientError::Interrupted { url, reason }
                if url.starts_with("http://") && reason.contains("HTTP version") =>
            {
                failure.with_code(EXIT_NO_SERVER).hint(
                    "that server does not speak plain HTTP: if it speaks HTTPS, write https:// instead of http://",
                )
            }
            ClientError::Interrupted { .. } | ClientError::Timeout { .. } => failure
                .with_code(EXIT_NO_SERVER)
                .hint("the request may have been carried out: check before you send it again"),
            ClientError::Decode { request_id, .. } => failure.detail_if("request id", request_id),
            ClientError::Api {
                status,
                details,
                request_id,
                retry_after,
                ..
            } => {
                let mut failure = failure;
                // What is wrong with a field stays wrong, and what says by which command it is mended does not pass by itself.
                let may_pass = details.is_empty() && !says_what_to_do(&failure.message);
                failure.message = words::in_sentence(&failure.message);
                for field in details {
                    let (path, message) = (&field.path, words::in_sentence(&field.message));
                    let line = format!("{}: {message}", words::of(path).as_deref().unwrap_or(path));
                    failure.message = failure.message.replace(&format!("{path}: {message}"), &line);
                    // A single field's fault may stand in the message already.
                    if !failure.message.contains(&line) {
                        failure = failure.detail(line);
                    }
                }
                // The id helps only where a person has to read the server's log.
                if status >= 500 {
                    failure = failure.detail_if("request id", request_id);
                }
                match status {
                    401 => failure.with_code(EXIT_REFUSED).hint(
                        "give a valid token in HEARTH_TOKEN; the first one of a server is in the file admin-token of its data folder",
                    ),
                    // Of a user in the VM, and not of the token.
                    403 if is_of_a_file(&failure.message) => failure,
                    403 => {
                        let advice = advice_for_scope(&failure.message);
                        let failure = failure.with_code(EXIT_REFUSED);
                        match advice {
                            Some(advice) => failure.hint(advice),
                            None => failure,
                        }
                    }
                    429 | 503 if !may_pass => failure.with_code(EXIT_LATER),
                    429 | 503 => {
                        let when = retry_after.map_or(String::new(), |pause| format!(" in {}", output::whole_seconds(pause)));
                        failure.with_code(EXIT_LATER).hint(format!("try again{when}"))
                    }
                    500 => failure.hint("the server's log says more, under this request id"),
                    _ => failure,
                }
            }
        }
    }
}

/// Whether a file of a VM may not be read or written, as the agent says it.
fn is_of_a_file(message: &str) -> bool {
    ["has no permission for this at", "on a file system that is read-only"]
        .iter()
        .any(|words| message.contains(words))
}

/// Whether a message of the server holds its own advice, which trying again would only delay.
fn says_what_to_do(message: &str) -> bool {
    ["`hearth ", "does not answer since", "free some space"]
        .iter()
        .any(|words| message.contains(words))
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
