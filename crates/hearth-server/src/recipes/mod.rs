//! What pools are made by.

pub mod set_ups;
pub mod target;
