//! What must not be read by others: sealed values, the files that carry them into VMs, and the redactors that know them.

pub mod cipher;
pub mod env_file;
pub mod git_config;
pub mod git_credentials;
pub mod key_agent;
pub mod links;
pub mod passphrase;
pub mod redactors;
