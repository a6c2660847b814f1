//! VMs that exist: what is done to one of them, whoever needs it.

pub mod pause;
