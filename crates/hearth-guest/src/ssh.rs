//! SSH into a VM: whose keys open it, and by which keys the VM proves itself.

use serde::{Deserialize, Serialize};

/// Body of `POST /v1/ssh/keys`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKeys {
    /// Public keys as OpenSSH writes them: `ssh-ed25519 AAAA… comment`. They are added to those that are there.
    pub keys: Vec<String>,
}

/// Its reply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SshHost {
    /// The VM's public keys, in the same form.
    pub host_keys: Vec<String>,
}
