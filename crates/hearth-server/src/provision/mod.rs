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
mod git;
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

use hearth_drivers::{Driver, Locks};

use crate::store::Store;
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
