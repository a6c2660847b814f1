//! What crosses a wire: ids, request and reply types, the error body. No IO, except in the feature `client`
//! (a typed client of the HTTP API).

#![warn(missing_docs)]

pub mod advice;
pub mod audit;
pub mod claim;
pub mod counted;
pub mod credential;
pub mod egress;
pub mod error;
pub mod event;
pub mod exec;
pub mod explain;
pub mod file;
pub mod find;
pub mod fork;
pub mod history;
pub mod hook;
pub mod ids;
pub mod instance;
pub mod log;
pub mod page;
pub mod patch;
pub mod pool;
pub mod port;
pub mod project;
pub mod schedule;
pub mod server;
pub mod session;
pub mod settings;
pub mod setup;
pub mod ssh;
pub mod template;
pub mod terminal;
pub mod time;
pub mod token;
pub mod values;
pub mod variables;
pub mod webhook;

#[cfg(feature = "client")]
pub mod client;
