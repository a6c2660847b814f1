//! TCP ports of a VM: what listens there.

use serde::{Deserialize, Serialize};

/// Reply of `GET /v1/ports`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortList {
    /// By port, then by address.
    pub items: Vec<ListeningPort>,
}

/// A TCP socket that takes connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListeningPort {
    /// Its port.
    pub port: u16,
    /// Its address: `127.0.0.1`, `0.0.0.0` or `::` for all addresses.
    pub address: String,
    /// The process that holds it, the one with the lowest id where there are several; absent when it ended meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_id: Option<u32>,
    /// The short name of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Its arguments, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Who opened the socket; a number where the VM knows no name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}
