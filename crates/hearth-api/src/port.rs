//! TCP ports in a VM, over the public API: what listens, previews, links that others can open, and the messages of a raw connection.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time;

/// The header that names an instance for a request on any path; goes with [`PORT_HEADER`].
pub const INSTANCE_HEADER: &str = "x-hearth-instance";
/// The header that names a port of that instance's VM.
pub const PORT_HEADER: &str = "x-hearth-port";
/// Carries Hearth's token where `Authorization` is for the server in the VM.
pub const TOKEN_HEADER: &str = "x-hearth-token";

/// Longest life of a shared link, seconds: 30 days.
pub const MAX_SHARE_SECONDS: u64 = 30 * 24 * 3600;

/// Reply of `GET /instances/{id}/ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstancePorts {
    /// What listens in the VM, by port.
    pub items: Vec<InstancePort>,
    /// The previews that the repositories' settings files name.
    pub previews: Vec<InstancePreview>,
}

/// A TCP socket in the VM that takes connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstancePort {
    /// Its port.
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
    /// Its address in the VM: `127.0.0.1`, or `0.0.0.0` and `::` for all addresses. All of them are reached alike.
    pub address: String,
    /// The process that listens.
    #[schema(required)]
    pub process_id: Option<u32>,
    /// Its short name.
    #[schema(required)]
    pub process: Option<String>,
    /// Its program and arguments, up to 256 characters.
    #[schema(required)]
    pub command: Option<String>,
    /// The user who opened the socket.
    #[schema(required)]
    pub user: Option<String>,
    /// Where HTTP and WebSockets to it go.
    pub url: String,
}

/// A preview of a repository's settings file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstancePreview {
    /// What it is called.
    pub name: String,
    /// Of which repository.
    pub repo_full_name: String,
    /// Its port in the VM.
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
    /// Where HTTP and WebSockets to it go.
    pub url: String,
    /// Whether anything listens on its port.
    pub listening: bool,
}

/// Body of `POST /instances/{id}/shares`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "port": 3000, "expiresInSeconds": 7200 }))]
pub struct ShareRequest {
    /// The port in the VM.
    #[serde(deserialize_with = "crate::patch::required_whole")]
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
    /// How long the link works; 8 hours when absent. It ends with the claim in any case.
    #[serde(
        default,
        deserialize_with = "crate::patch::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub expires_in_seconds: Option<u64>,
}

/// A link that works without a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// What to open in a browser. A person who has it reaches this one port of this one VM.
    pub url: String,
    /// The port in the VM.
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
    /// When it stops to work.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// A text message of a raw connection; its bytes are binary messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum TunnelMessage {
    /// The sender sends no more bytes, and still takes some.
    End,
    /// Of the server: the connection broke off.
    Broken {
        /// Why.
        message: String,
    },
}
