//! SSH into the VM.

use super::stream::GuestStream;
use super::{AgentClient, AgentError, json, with_query};
use crate::paths;
use crate::ssh::{SshHost, SshKeys};

/// The agent's status for: the VM has no SSH server.
pub const NO_SSH_SERVER: u16 = 501;

impl AgentClient {
    /// Lets the owners of these public keys enter. An agent before protocol 10 refuses it with 404.
    pub async fn allow_ssh(&self, keys: Vec<String>) -> Result<SshHost, AgentError> {
        json(self.post(paths::SSH_KEYS, &SshKeys { keys }).await?).await
    }

    /// An SSH connection, whose sessions have the variables of this file.
    pub async fn ssh_stream(&self, env_file: &str) -> Result<GuestStream, AgentError> {
        let target = with_query(paths::SSH, &[(paths::PATH, env_file)]);
        self.open_stream(&target).await
    }
}
