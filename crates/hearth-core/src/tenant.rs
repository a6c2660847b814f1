//! Whose a project is.

/// The tenant of the first token, and its owner: the person who runs the installation.
pub const FIRST_TENANT: &str = "default";
