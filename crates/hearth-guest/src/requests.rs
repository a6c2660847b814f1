//! What programs in a VM ask of the host: git for a credential, ssh for a signature. The host keeps one reply of the agent open and
//! reads questions from it; nothing in the VM connects to the host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where the agent's sockets for programs of the VM are.
pub const FOLDER: &str = "/run/hearth";
/// In it: takes a [`GuestQuestion`] as a line of JSON and gives a [`HostAnswer`] as another.
pub const SOCKET: &str = "requests.sock";
/// In it: speaks the protocol of SSH agents.
pub const SSH_SOCKET: &str = "ssh-agent.sock";

/// Longest message of the SSH agent's protocol that is passed on, bytes.
pub const MAX_SSH_MESSAGE: usize = 32 * 1024;
/// Longest line, bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// One question, as a line of JSON in the reply of `GET /v1/guest-requests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRequest {
    /// What the answer is to say.
    pub id: u64,
    /// What is asked.
    pub question: GuestQuestion,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum GuestQuestion {
    /// By git's credential helper.
    GitCredential {
        /// `https` or `http`.
        protocol: String,
        /// `host` or `host:port`.
        host: String,
        /// The user that the repository's address names.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        username: Option<String>,
    },
    /// By a client of an SSH agent.
    SshAgent {
        /// One message of its protocol without the length, base64.
        message: String,
    },
    /// By a newer agent.
    #[serde(other)]
    Unknown,
}

/// Body of `POST /v1/guest-requests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReply {
    /// The question's.
    pub id: u64,
    /// What it is answered with.
    pub answer: HostAnswer,
}

/// What a question is answered with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum HostAnswer {
    /// The credential.
    GitCredential {
        /// Who it is of.
        username: String,
        /// The secret.
        password: String,
    },
    /// The SSH agent's answer.
    SshAgent {
        /// One message of its protocol without the length, base64.
        message: String,
    },
    /// There is none.
    Nothing,
    /// It could not be found out.
    Failed {
        /// Why, for a person.
        message: String,
    },
}

/// Without what it holds, which may be secret.
impl fmt::Debug for HostAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GitCredential { .. } => "GitCredential",
            Self::SshAgent { .. } => "SshAgent",
            Self::Nothing => "Nothing",
            Self::Failed { .. } => "Failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_of_a_newer_agent_is_read_and_answer_shows_no_secret() {
        let request: GuestRequest =
            serde_json::from_str(r#"{"id":7,"question":{"kind":"somethingNew","more":[1]}}"#).unwrap();
        assert_eq!((request.id, request.question), (7, GuestQuestion::Unknown));
        let answer = HostAnswer::GitCredential {
            username: "u".to_owned(),
            password: "geheim".to_owned(),
        };
        assert_eq!(format!("{answer:?}"), "GitCredential");
    }
}
