//! The VMs that there are: connections to their agents, pausing them, whether they answer, what memory they use, and
//! keys for their SSH servers.

pub mod connections;
pub mod host_keys;
pub mod lost;
pub mod memory;
pub mod pause;
pub mod probe;
