//! What crosses a wire: ids, request and reply types, the error body, the agent protocol. No IO, except in the features
//! `client` (a typed client of the HTTP API) and `agent-client` (the host's end of the agent protocol).

pub mod agent;
pub mod ids;
