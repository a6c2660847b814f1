//! The VMs that there are: connections to their agents, pausing them, keys for their SSH servers.

pub mod connections;
pub mod host_keys;
pub mod pause;
