//! The result of a provisioning run.

use hearth_api::claim::ClaimedRepo;
use hearth_api::instance::RepoSettings;

use crate::checkpoint::CheckpointKey;

/// What a finished run leaves behind.
#[derive(Debug, Clone, Default)]
pub struct Provisioned {
    pub repos: Vec<ClaimedRepo>,
    /// What the repositories' settings files say.
    pub settings: Vec<RepoSettings>,
    /// Memory that only the paused VM uses, MiB; `None` for one that is not paused.
    pub private_mib: Option<u64>,
    /// The checkpoint it was forked from.
    pub template: Option<CheckpointKey>,
    /// The boot of its guest.
    pub boot_id: Option<String>,
}
