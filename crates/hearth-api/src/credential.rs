//! Git credentials of a project: for each host a token (https), a deploy key (ssh), or both. Secrets go in and never come back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::patch::objects;
use crate::time;
use crate::values::{CredentialHost, CredentialSecret, CredentialUsername};

/// What kind of credential it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CredentialKind {
    /// A token or password, for https.
    Token,
    /// A private key, for ssh.
    Key,
}

impl CredentialKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Token, Self::Key];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Key => "key",
        }
    }
}

impl std::str::FromStr for CredentialKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let kind = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        kind.ok_or_else(|| "must be `token` or `key`".to_owned())
    }
}

/// Body of PUT: each one is made or replaced, the others stay.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "credentials": [{ "host": "github.com", "kind": "token", "secret": "ghp_s3cret" }] }))]
pub struct PutCredentials {
    /// 1 to 20 credentials.
    #[serde(deserialize_with = "objects")]
    #[schema(min_items = 1, max_items = 20)]
    pub credentials: Vec<Credential>,
}

/// One credential. Its secret is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// The git server.
    pub host: CredentialHost,
    /// What kind of secret it is.
    pub kind: CredentialKind,
    /// Of a token: the user name that is sent with it. Without one it is `x-access-token`, which the usual hosts take with a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<CredentialUsername>,
    /// The token, or the private key in OpenSSH's format without a passphrase.
    pub secret: CredentialSecret,
    /// Of a token: whether it may be sent over http:// too, unencrypted.
    #[serde(default)]
    #[schema(required = false)]
    pub allow_http: bool,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("host", &self.host)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PutCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.credentials).finish()
    }
}

/// What is shown of a credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialItem {
    /// The git server.
    pub host: String,
    /// What kind of secret it is.
    pub kind: CredentialKind,
    /// Of a token: the user name that is sent with it, where one was given.
    #[schema(required)]
    pub username: Option<String>,
    /// Of a token: whether it may be sent over http:// too.
    pub allow_http: bool,
    /// Of a key: its fingerprint, as `ssh-keygen -l` prints it.
    #[schema(required)]
    pub fingerprint: Option<String>,
    /// When it was last set.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Who set it.
    #[schema(required)]
    pub last_updated_by_user_id: Option<String>,
}

/// Reply of DELETE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CredentialDeleted {
    /// Whether there was one.
    pub deleted: bool,
    /// Its host.
    pub host: String,
}
