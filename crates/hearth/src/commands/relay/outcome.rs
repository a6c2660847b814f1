//! What became of an order, in the exit codes that the vendors document: 0 is done, 1 may be tried again, 2 needs a person.

use hearth_api::client::ClientError;

use crate::failure::{EXIT_LATER, EXIT_NO_SERVER, Failure};
use crate::output;
use crate::text::clean_line;

const DONE: u8 = 0;
const AGAIN: u8 = 1;
const BLOCKED: u8 = 2;

/// What became of an order. The texts hold no secrets: vendors show them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A worker runs for it, or ran.
    Done(String),
    /// It was not taken, and the same may work later.
    Again(String),
    /// It was not taken, and a person has to do something first.
    Blocked(String),
}

impl Outcome {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Done(_) => DONE,
            Self::Again(_) => AGAIN,
            Self::Blocked(_) => BLOCKED,
        }
    }

    /// On standard error, whose end the vendor shows.
    pub(super) fn say(&self) {
        let (Self::Done(text) | Self::Again(text) | Self::Blocked(text)) = self;
        output::note(&clean_line(text));
    }

    /// Why there is no client.
    pub(super) fn of_failure(failure: &Failure) -> Self {
        let text = failure.to_string();
        match failure.code() {
            EXIT_NO_SERVER | EXIT_LATER => Self::Again(text),
            _ => Self::Blocked(text),
        }
    }
}

impl From<ClientError> for Outcome {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::Unreachable { .. } | ClientError::Interrupted { .. } | ClientError::Timeout { .. } => {
                Self::Again(text)
            }
            // Something between this program and the server may say a 404 in words of its own.
            ClientError::Api { status: 408 | 429, .. } => Self::Again(text),
            ClientError::Api { status, .. } if status >= 500 => Self::Again(text),
            ClientError::Api { .. } | ClientError::Setup { .. } | ClientError::Decode { .. } => Self::Blocked(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn api(status: u16) -> ClientError {
        ClientError::Api {
            status,
            code: None,
            message: "m".to_owned(),
            details: Vec::new(),
            request_id: None,
            retry_after: None,
        }
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_needs_a_person_is_blocked() {
        for status in [429, 500, 502, 503, 507] {
            assert_eq!(Outcome::from(api(status)).exit_code(), 1, "{status}");
        }
        for status in [401, 403, 404, 409, 422] {
            assert_eq!(Outcome::from(api(status)).exit_code(), 2, "{status}");
        }
        let timeout = ClientError::Timeout {
            url: String::new(),
            after: Duration::from_secs(1),
        };
        assert_eq!(Outcome::from(timeout).exit_code(), 1);
        assert_eq!(Outcome::Done(String::new()).exit_code(), 0);
    }
}
