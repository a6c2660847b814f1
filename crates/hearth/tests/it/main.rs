//! The command line, tried with the real binary. No VM and no Hearth server: what the binary makes of arguments, of its
//! surroundings and of a server's answers.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of tests: what cannot go on should stop and say where"
)]

mod advise;
mod arguments;
mod attached;
mod backup;
mod cancel;
mod claims;
mod completion;
mod config;
mod connecting;
mod credentials;
mod egress;
mod events;
mod exec;
mod explain;
mod fake;
mod files;
mod first_steps;
mod fork;
mod images;
mod import;
mod incus;
#[path = "../../../hearth-drivers/tests/it/incus_daemon.rs"]
mod incus_daemon;
mod instances;
mod killed;
mod leases;
mod manual;
mod mcp;
mod names;
mod output;
mod pause;
mod pool_test;
mod pool_watch;
mod ports;
mod projects;
mod relay;
mod remote;
mod server;
mod servers;
mod service;
mod sessions;
mod setup;
mod sources;
mod store;
mod support;
mod terminal;
mod tls;
mod top;
mod traces;
mod variables;
mod webhook;
mod webhooks;
mod written;
