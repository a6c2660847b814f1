//! What a call of the API can end in besides success. Texts are for people; programs match on the variants.

use std::time::Duration;

pub(super) use crate::error::chain;
use crate::error::{ErrorBody, ErrorCode, FieldError};

/// Why a call did not give what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The address or the token cannot be used at all; nothing was sent.
    #[error("{reason}")]
    Setup {
        /// What is wrong with them.
        reason: String,
    },
    /// No server answers there; the request never reached one.
    #[error("no Hearth server answers at {url}: {reason}")]
    Unreachable {
        /// The server's address.
        url: String,
        /// What the connection attempt said.
        reason: String,
    },
    /// The connection broke after the request was sent: it may have been carried out or not.
    #[error("the connection to {url} broke before the answer was complete: {reason}")]
    Interrupted {
        /// The server's address.
        url: String,
        /// What the connection said.
        reason: String,
    },
    /// No answer in time: it may have been carried out or not.
    #[error("{url} gave no answer within {} s", after.as_secs())]
    Timeout {
        /// The server's address.
        url: String,
        /// How long we waited.
        after: Duration,
    },
    /// The server refused.
    #[error("{message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// The code, if it is one that this client knows.
        code: Option<ErrorCode>,
        /// What happened and what to do.
        message: String,
        /// Fields of the request that are at fault.
        details: Vec<FieldError>,
        /// For finding the request in the server's log.
        request_id: Option<String>,
        /// When to try again.
        retry_after: Option<Duration>,
    },
    /// The answer is not what this version of the client understands.
    #[error("the answer of {url} cannot be read ({reason}): is it a Hearth server, and of this version?")]
    Decode {
        /// What was asked.
        url: String,
        /// What does not fit.
        reason: String,
        /// For finding the request in the server's log.
        request_id: Option<String>,
    },
}

impl ClientError {
    /// The server's code, when the server answered with one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api { code, .. } => *code,
            _ => None,
        }
    }

    /// Whether the thing that was asked for does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(ErrorCode::NotFound)
    }
}

/// Makes the error from a reply outside 2xx. A reply without our error body comes from something in between (a proxy) or
/// from a different server, and the text says so.
pub(super) fn from_reply(
    status: u16,
    body: &[u8],
    request_id: Option<String>,
    retry_after: Option<Duration>,
) -> ClientError {
    let parsed = serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.error);
    let (code, message, details) = match parsed {
        Some(detail) => (Some(detail.code), detail.message, detail.details.unwrap_or_default()),
        None => (None, loose_message(status, body), Vec::new()),
    };
    ClientError::Api {
        status,
        code,
        message,
        details,
        request_id,
        retry_after,
    }
}

/// A newer server may use a code we do not know: its message still counts.
fn loose_message(status: u16, body: &[u8]) -> String {
    let value: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = value
        .as_ref()
        .and_then(|value| value.pointer("/error/message"))
        .and_then(|text| text.as_str());
    match message {
        Some(text) => text.to_owned(),
        None => format!("the answer was HTTP {status} and not in Hearth's form: is something else at this address?"),
    }
}
