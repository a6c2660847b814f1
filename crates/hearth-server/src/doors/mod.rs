//! Doors for clients of other products, each in the protocol that those speak.

pub mod e2b;
pub mod mcp;
