//! SSH into a VM, over the public API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /instances/{id}/ssh/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "publicKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ ada@laptop" }))]
pub struct AllowSsh {
    /// A public key as OpenSSH writes it.
    #[schema(min_length = 1, max_length = 8192)]
    pub public_key: String,
}

/// How a VM proves itself to SSH clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshAllowed {
    /// Its public keys, as a `known_hosts` file has them behind the host's name.
    pub host_keys: Vec<String>,
}
