//! Provisioning: from a row in the state `provisioning` to a VM that is ready, in eight steps. Every step's entry is in the
//! store when the step has ended. Nothing here decides *whether* a VM is made (the planner does), and nothing here writes
//! a state (the reconciler does).

pub mod agents;
pub mod blueprint;
mod chain;
mod commands;
pub mod envfile;
pub mod follow;
mod forge;
pub mod git;
pub mod legacy;
mod machine;
pub mod mask;
pub mod mask_cache;
pub mod mirrors;
pub mod output;
mod piece;
mod recorder;
mod repositories;
pub mod scripts;
pub mod settings;
mod steps;

use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::{CheckpointKey, Driver, Locks};
use jiff::Timestamp;

use crate::store::{Store, StoreError};
use agents::Agents;
use follow::Followers;
use mirrors::Mirrors;

pub use piece::Piece;
pub use steps::{Boot, Provisioned, Stop, provision};

/// Everything a run works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where entries go.
    pub store: Store,
    /// What makes VMs.
    pub driver: Arc<dyn Driver>,
    /// Connections to the agents.
    pub agents: Agents,
    /// The repositories on the host.
    pub mirrors: Mirrors,
    /// Who is watching.
    pub followers: Followers,
    /// One build per project, and one per base, at a time.
    pub builds: Locks<String>,
    /// Time limit of one set-up command.
    pub command_timeout: Duration,
    /// Time a VM has to boot until its agent answers.
    pub boot_timeout: Duration,
}

impl Context {
    /// A checkpoint turned out to be damaged: nobody begins at it again, and what was forked from it goes.
    pub async fn forget_checkpoint(&self, key: &CheckpointKey, reason: &str) -> Result<(), StoreError> {
        tracing::error!(%key, reason, "a checkpoint is not used any more and made anew when it is needed");
        let now = Timestamp::now();
        self.store.note_checkpoint_fault(key, reason, now).await?;
        self.store.forget_checkpoint(key, true, now).await?;
        if let Err(error) = self.driver.remove_checkpoint(key).await {
            // VMs may lie on it still; then a later round of the keeper removes it.
            tracing::debug!(%error, %key, "a damaged checkpoint stays for now");
        }
        Ok(())
    }
}
