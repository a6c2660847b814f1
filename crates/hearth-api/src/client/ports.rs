//! TCP ports in a VM: what listens, links, and raw connections.

use bytes::Bytes;

use super::Client;
use super::call::Call;
use super::error::ClientError;
use super::socket::{self, Received, Receiving, Sending};
use crate::ids::InstanceId;
use crate::port::{InstancePorts, Share, ShareRequest, TunnelMessage};

/// The direction of a raw connection that goes to the VM.
#[derive(Debug)]
pub struct TunnelSender(Sending);

/// The direction that comes from it.
#[derive(Debug)]
pub struct TunnelReceiver(Receiving);

impl Client {
    /// What listens in an instance's VM, and its previews.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_ports(&self, id: &InstanceId) -> Result<InstancePorts, ClientError> {
        self.get(&["instances", id.as_str(), "ports"]).read().await
    }

    /// A link to a port that works without a token.
    ///
    /// # Errors
    /// As every call.
    pub async fn share_port(&self, id: &InstanceId, request: &ShareRequest) -> Result<Share, ClientError> {
        self.post(&["instances", id.as_str(), "shares"])
            .json(request)?
            .read()
            .await
    }

    /// Connects to a port in an instance's VM. Dropping both directions breaks the connection off.
    ///
    /// # Errors
    /// As every call; with the code `bad_gateway` when nothing listens there.
    pub async fn tunnel(&self, id: &InstanceId, port: u16) -> Result<(TunnelSender, TunnelReceiver), ClientError> {
        let call = self.get(&["instances", id.as_str(), "tcp", &port.to_string()]);
        tunnel(self, call).await
    }
}

/// Makes this call a raw connection.
pub(super) async fn tunnel(client: &Client, call: Call<'_>) -> Result<(TunnelSender, TunnelReceiver), ClientError> {
    let (sending, receiving) = socket::open(client, call).await?;
    Ok((TunnelSender(sending), TunnelReceiver(receiving)))
}

impl TunnelSender {
    /// Sends bytes; waits until there is room for them.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn bytes(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.0.bytes(bytes).await
    }

    /// Says that no more bytes come.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn end(&mut self) -> Result<(), ClientError> {
        self.0.message(&TunnelMessage::End).await
    }
}

impl TunnelReceiver {
    /// What comes next; `None` at the end of this direction, after which nothing does.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`]: the connection broke off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.0.next().await? {
                Received::Bytes(bytes) => return Ok(Some(bytes)),
                Received::Text(text) => match serde_json::from_str(&text) {
                    Ok(TunnelMessage::End) => return Ok(None),
                    Ok(TunnelMessage::Broken { message }) => return Err(self.0.interrupted(message)),
                    // A newer server may say more.
                    Err(_) => {}
                },
            }
        }
    }
}
