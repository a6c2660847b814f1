//! Whose a project is.

/// The tenant of the first token, and its owner: whoever runs the installation.
pub const FIRST_TENANT: &str = "default";
