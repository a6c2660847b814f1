//! Templates and their parents: which one serves a pool, what the host gives to VMs, old images.

pub mod environment;
pub mod gc;
pub mod images;
pub mod select;
