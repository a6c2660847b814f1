//! SSH into a VM.

use super::Client;
use super::error::ClientError;
use super::ports::{TunnelReceiver, TunnelSender, tunnel};
use crate::ids::InstanceId;
use crate::ssh::{AllowSsh, SshAllowed};

impl Client {
    /// Lets the owner of a public key enter an instance's VM.
    ///
    /// # Errors
    /// As every call.
    pub async fn allow_ssh(&self, id: &InstanceId, public_key: &str) -> Result<SshAllowed, ClientError> {
        let body = AllowSsh {
            public_key: public_key.to_owned(),
        };
        self.post(&["instances", id.as_str(), "ssh", "keys"])
            .json(&body)?
            .repeat(super::call::Repeat::Harmless)
            .read()
            .await
    }

    /// An SSH connection to an instance's VM.
    ///
    /// # Errors
    /// As every call.
    pub async fn ssh(&self, id: &InstanceId) -> Result<(TunnelSender, TunnelReceiver), ClientError> {
        tunnel(self, self.get(&["instances", id.as_str(), "ssh"])).await
    }
}
