//! TCP ports of the VM: what listens, and connections to it.

use http::Method;

use super::stream::GuestStream;
use super::transfer::Download;
use super::{AgentClient, AgentError, with_query};
use crate::paths;
use crate::ports::{ListeningPort, PortList};

/// Longest list of listening ports that is read.
const PORT_LIST: usize = 4 * 1024 * 1024;

/// The agent's status for: nothing listens on the port.
pub const NOTHING_LISTENS: u16 = 502;
/// The agent's status for: what listens did not take the connection in time.
pub const NOT_ACCEPTED: u16 = 504;

impl AgentClient {
    /// What listens in the VM. An agent before protocol 10 refuses it with 404.
    pub async fn listening_ports(&self) -> Result<Vec<ListeningPort>, AgentError> {
        let reply = self.call(Method::GET, paths::PORTS, None).await?;
        let body = Download::new(reply.into_body()).collect(PORT_LIST).await?;
        let list: PortList = serde_json::from_slice(&body).map_err(|error| AgentError::Protocol(error.to_string()))?;
        Ok(list.items)
    }

    /// A connection to what listens on this port in the VM: on its loopback addresses, or on another address of its own. Refused with
    /// [`NOTHING_LISTENS`] or [`NOT_ACCEPTED`].
    pub async fn port_stream(&self, port: u16) -> Result<GuestStream, AgentError> {
        let target = with_query(paths::PORT_STREAM, &[(paths::PORT, &port.to_string())]);
        self.open_stream(&target).await
    }
}
