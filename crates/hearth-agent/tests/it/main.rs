//! The real agent, spoken to by the real client over a Unix socket.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod exec;
mod exec_session_limits;
mod exec_sessions;
mod files;
mod fs;
mod limits;
mod logs;
mod ports;
mod requests;
mod sessions;
mod support;
mod terminal;
mod warm_commands;
mod watch;
