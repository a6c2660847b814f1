//! What crosses a wire: ids, request and reply types, the error body, the agent protocol. No IO, except in the features
//! `client` (a typed client of the HTTP API) and `agent-client` (the host's end of the agent protocol).

pub mod agent;
pub mod claim;
pub mod error;
pub mod exec;
pub mod explain;
pub mod find;
pub mod hook;
pub mod ids;
pub mod instance;
pub mod log;
pub mod page;
pub mod patch;
pub mod pool;
pub mod project;
pub mod settings;
pub mod setup;
pub mod template;
pub mod terminal;
pub mod text;
pub mod time;
pub mod token;
pub mod variables;

#[cfg(feature = "client")]
pub mod client;
