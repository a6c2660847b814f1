//! What must not be read by others: sealed values, the files that carry them into VMs, and hiding them in text.

pub mod cipher;
pub mod env_file;
pub mod git_config;
pub mod mask;
pub mod mask_cache;
