//! Repositories on the host: mirrors and the git that fetches them, what may be fetched for whom, the branches that are followed, what
//! a repository says of itself, and its checkout in a VM.

pub mod branches;
pub mod checkout;
pub mod checkouts;
pub mod extra_content;
pub mod git;
mod heads;
pub mod imports;
pub mod legacy_hooks;
pub mod lfs;
pub mod mirror_error;
pub mod mirror_gc;
mod mirror_use;
pub mod mirrors;
pub mod remote_branches;
pub mod settings;
pub mod sources;
pub mod submodules;
pub mod transfer;
pub mod watch;
