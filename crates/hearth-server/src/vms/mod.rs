//! The VMs that there are: connections to their agents, pausing them, what they may reach, whether they answer, how they end, what memory they use, and
//! keys for their SSH servers.

pub mod admission;
pub mod connections;
pub mod egress;
pub mod ended;
pub mod guest_requests;
pub mod host_keys;
pub mod identity;
pub mod idle;
pub mod lost;
pub mod memory;
pub mod pause;
pub mod probe;
mod probe_states;
