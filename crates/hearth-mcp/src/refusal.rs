//! Why a tool did not do what it was called for, and what to do about it: the text that an agent reads.

use std::fmt;

use hearth_api::client::ClientError;

/// A text for the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal(String);

impl Refusal {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        let mut text = error.to_string();
        if let ClientError::Api {
            status,
            details,
            retry_after,
            ..
        } = &error
        {
            for detail in details {
                text.push_str(&format!("\n- {}: {}", detail.path, detail.message));
            }
            match (status, retry_after) {
                (429 | 503, Some(after)) => text.push_str(&format!("\nTry again in {} s.", after.as_secs())),
                (401, _) => text.push_str("\nThe person who set Hearth up for you has to give you another token."),
                (403, _) => {
                    text.push_str("\nThe token may not do this; the person who set Hearth up for you decides that.");
                }
                _ => {}
            }
        }
        Self(text)
    }
}
